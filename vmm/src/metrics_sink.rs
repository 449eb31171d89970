//! Where the lines of metrics go: a file or a FIFO, one line each time they are flushed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use kindling_metrics::{Metrics, metrics};

use crate::line_output::LineOutput;

metrics! {
    /// What became of the lines of metrics.
    pub struct MetricsSinkMetrics {
        /// Lines of metrics that were written.
        lines: Counter,
        /// Lines of metrics that were lost, since their destination was full or could not be written.
        lost_lines: Counter,
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct MetricsSink {
    output: LineOutput,
    metrics: Arc<MetricsSinkMetrics>,
}

impl MetricsSink {
    /// A file, which is created (for its owner alone) if missing and appended to otherwise, or a FIFO, which need not have
    /// a reader yet.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut output = LineOutput::open(path)?;
        output.prepare();
        Ok(Self { output, metrics: Arc::default() })
    }

    /// Writes `line` and a line feed, without waiting. While a FIFO has room for part of a line only, the rest of it comes
    /// with the next.
    ///
    /// # Errors
    ///
    /// Why the line is lost: [`io::ErrorKind::WouldBlock`] where a FIFO is full, else what the system said. The next may
    /// fare better.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        let written = self.output.write(format!("{line}\n").as_bytes());
        match written {
            Ok(()) => self.metrics.lines.increment(),
            Err(_) => self.metrics.lost_lines.increment(),
        }
        written
    }

    /// What became of the lines.
    pub fn metrics(&self) -> Arc<dyn Metrics> {
        Arc::<MetricsSinkMetrics>::clone(&self.metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line_output::tests::{fifo, line, read, reader};

    /// Lines that were written and that were lost.
    fn counted(sink: &MetricsSink) -> (u64, u64) {
        (sink.metrics.lines.get(), sink.metrics.lost_lines.get())
    }

    #[test]
    fn a_full_fifo_loses_lines_until_it_is_read_and_they_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(&folder);
        let mut sink = MetricsSink::open(&path).unwrap();
        let text = line('x', 4096);
        let text = text.trim_end();
        let mut written = 0;
        let error = loop {
            match sink.write(text) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), written), (io::ErrorKind::WouldBlock, 16));
        assert_eq!(counted(&sink), (16, 1));
        let mut reader = reader(&path);
        assert_eq!(read(&mut reader), format!("{text}\n").repeat(16));
        sink.write("last").unwrap();
        assert_eq!(read(&mut reader), "last\n");
        assert_eq!(counted(&sink), (17, 1));
    }

    #[test]
    fn lines_wait_in_a_fifo_for_the_next_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(&folder);
        let mut sink = MetricsSink::open(&path).unwrap();
        let mut first = reader(&path);
        sink.write("one").unwrap();
        assert_eq!(read(&mut first), "one\n");
        drop(first);
        sink.write("two").unwrap();
        let mut second = reader(&path);
        sink.write("three").unwrap();
        assert_eq!(read(&mut second), "two\nthree\n");
        assert_eq!(counted(&sink), (3, 0));
    }

    #[test]
    fn a_full_disk_loses_lines_and_they_are_counted() {
        let mut sink = MetricsSink::open(Path::new("/dev/full")).unwrap();
        for lost in 1..=3 {
            assert_eq!(sink.write("line").unwrap_err().kind(), io::ErrorKind::StorageFull);
            assert_eq!(counted(&sink), (0, lost));
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused_when_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| MetricsSink::open(path).unwrap_err().kind();
        assert_eq!(refused(folder.path()), io::ErrorKind::IsADirectory);
        assert_eq!(refused(&folder.path().join("missing/metrics")), io::ErrorKind::NotFound);

        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
        // SAFETY: the calls take a number each. The first takes root's right to write anywhere from this thread alone, and
        // the second gives it back.
        let kind = unsafe {
            let before = libc::setfsuid(65_534);
            let kind = refused(&folder.path().join("metrics"));
            libc::setfsuid(before as libc::uid_t);
            kind
        };
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
    }
}
