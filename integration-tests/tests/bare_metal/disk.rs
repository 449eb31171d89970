//! Disks as drivers use them that are not Linux's.

use std::fs::File;

use crate::process::finish_run;

#[test]
fn writes_of_a_driver_that_does_not_flush_are_durable_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    for engine in ["sync", "async"] {
        let option = format!("{},cache=writeback,engine={engine}", disk.display());
        let work = "size=4096 write=1 random=0 depth=4 queues=1 interrupts=0 flush=0 ticks=100000000";
        let ended = finish_run(&format!("blk {work}"), &["--disk", &option], 0);
        let line = ended.output.lines().find_map(|line| line.strip_prefix("measured ")).unwrap();
        let (requests, _) = line.split_once(' ').unwrap();
        assert!(requests.parse::<u64>().unwrap() > 0, "{engine}: {ended:?}");
    }
}
