//! The serial console on standard streams that are slow, full, closed or absent.

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use kindling_integration_tests::harness::scaled;

use crate::process::{Vmm, finish, finish_run, run, until};

/// What the guest's scenario `flood` prints.
fn flood(kib: u32) -> String {
    (0..kib * 16).fold(String::new(), |mut all, line| {
        all.push_str(&format!("{line:08x} "));
        all.extend((9..63).map(|index| char::from(b'a' + ((line + index) % 26) as u8)));
        all.push('\n');
        all
    })
}

/// A failed comparison of so much text would be unreadable: shows the first difference.
#[track_caller]
fn assert_whole(output: &str, expected: &str) {
    let (got, want) = (output, expected);
    if got != want {
        let at = got.bytes().zip(want.bytes()).take_while(|(got, want)| got == want).count();
        let end = (at + 80).min(got.len());
        panic!(
            "{} of {} bytes arrived, different from byte {at}: {:?}",
            got.len(),
            want.len(),
            got.get(at..end)
        );
    }
}

#[test]
fn output_arrives_whole() {
    let ended = finish_run("flood kib=256", &[], 0);
    assert_whole(&ended.output, &flood(256));
}

#[test]
fn output_arrives_whole_at_a_reader_that_pauses() {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: no memory is involved.
    assert!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } > 0);
    let vmm = Vmm::start_with(run("flood kib=96", &[]).stdout(writer), |_| Some(Slow(reader)));
    let ended = vmm.end(0);
    assert_whole(&ended.output, &flood(96));
}

/// Reads a page after pauses from a pipe that holds no more, so that the guest is ahead most of the time. They are far
/// shorter than what has the monitor give a reader up.
struct Slow(PipeReader);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(100));
        self.0.read(&mut buffer[..4096])
    }
}

#[test]
fn output_arrives_whole_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    finish(run("flood kib=32", &[]).stdout(File::create(&path).unwrap()), 0);
    assert_whole(&std::fs::read_to_string(&path).unwrap(), &flood(32));
}

#[test]
fn output_arrives_whole_in_the_file_of_the_serial_option() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("console");
    let ended = finish_run("flood kib=32", &["--serial", &format!("file={}", path.display())], 0);
    assert_eq!(ended.output, "");
    assert_whole(&std::fs::read_to_string(&path).unwrap(), &flood(32));
}

#[test]
fn output_that_nobody_reads_does_not_keep_the_process_from_ending() {
    let (_unread, writer) = std::io::pipe().unwrap();
    let mut vmm = Vmm::start(run("flood kib=1048576", &[]).stdout(writer.try_clone().unwrap()));
    until("the pipe is full", || {
        let mut pipe = libc::pollfd { fd: writer.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: poll is given one structure, which lives across the call.
        unsafe { libc::poll(&raw mut pipe, 1, 0) == 0 }
    });
    // The port is full soon, too, and the reader is given up a second later.
    std::thread::sleep(Duration::from_secs(3));
    let start = Instant::now();
    vmm.signal(libc::SIGTERM);
    let ended = vmm.end(143);
    assert!(ended.errors.contains("bytes of console output found no reader"), "{ended:?}");
    assert!(start.elapsed() < scaled(Duration::from_secs(20)), "the end took {:?}", start.elapsed());
}

#[test]
fn a_guest_goes_on_when_nobody_listens_any_more() {
    // The console ends after the first bytes and closes the pipe.
    let vmm = Vmm::start_with(&mut run("flood kib=96", &[]), |stdout| stdout.map(|stdout| stdout.take(100)));
    let ended = vmm.end(0);
    assert_whole(&ended.output, &flood(96)[..100]);
}

#[test]
fn output_without_a_standard_output_is_no_failure() {
    finish(run("flood kib=8", &[]).stdout(Stdio::null()), 0);
}

#[test]
fn input_reaches_the_guest() {
    let mut vmm = Vmm::start(&mut run("echo", &[]));
    vmm.wait_for("ready");
    vmm.write("one\n");
    vmm.wait_for("one\n");
    vmm.write("two\nq\n");
    let ended = vmm.end(0);
    assert!(ended.output.contains("one\ntwo\nq\n"), "{ended:?}");
}

#[test]
fn more_input_than_the_port_holds_arrives_whole() {
    let mut vmm = Vmm::start(&mut run("echo", &[]));
    vmm.wait_for("ready\n");
    let lines = flood(4);
    vmm.write(&lines);
    vmm.write("q\n");
    let ended = vmm.end(0);
    let (_, echo) = ended.output.split_once("ready\n").unwrap();
    assert_whole(echo, &(lines + "q\n"));
}

#[test]
fn input_before_the_end_of_the_stream_arrives() {
    let mut vmm = Vmm::start(&mut run("echo", &[]));
    // Input from before the guest enables the port's FIFO would be dropped with that, as the data sheet has it.
    vmm.wait_for("ready\n");
    vmm.write("last\nq\n");
    vmm.close_input();
    let ended = vmm.end(0);
    assert!(ended.output.contains("last\nq\n"), "{ended:?}");
}

#[test]
fn a_closed_standard_input_costs_no_processor_time() {
    let mut vmm = Vmm::start(&mut run("spin", &[]));
    vmm.close_input();
    vmm.wait_for("spinning");
    stays_idle(vmm);
}

#[test]
fn a_standard_input_of_nothing_costs_no_processor_time() {
    let mut vmm = Vmm::start(run("spin", &[]).stdin(Stdio::null()));
    vmm.wait_for("spinning");
    stays_idle(vmm);
}

#[test]
fn input_that_the_guest_does_not_read_costs_no_processor_time() {
    let mut vmm = Vmm::start(&mut run("spin", &[]));
    vmm.wait_for("spinning");
    vmm.write(&flood(32));
    stays_idle(vmm);
}

/// Asserts that the thread that serves the console sleeps while the guest spins, and that it still answers.
fn stays_idle(mut vmm: Vmm) {
    std::thread::sleep(Duration::from_millis(100));
    let before = vmm.first_thread_time();
    // A clock that does not tell what the start took would not tell anything below, either.
    assert!(before > Duration::ZERO, "the kernel does not count the thread's processor time");
    std::thread::sleep(Duration::from_secs(1));
    let used = vmm.first_thread_time() - before;
    assert!(used < Duration::from_millis(50), "{used:?} of processor time in a second");
    vmm.signal(libc::SIGTERM);
    vmm.end(143);
}
