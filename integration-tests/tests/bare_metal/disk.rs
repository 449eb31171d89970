//! Disks as drivers use them that are not Linux's.

use serde_json::json;

use crate::api::Api;
use crate::process::until;

#[test]
fn writes_of_a_driver_that_does_not_flush_are_done() {
    for engine in ["Sync", "Async"] {
        let api = Api::new(&[]);
        let drive = json!({
            "drive_id": "a",
            "is_root_device": false,
            "path_on_host": api.disk("a"),
            "cache_type": "Writeback",
            "io_engine": engine,
        });
        api.done("PUT", "/drives/a", &drive);
        api.boot("blk size=4096 write=1 random=0 depth=4 queues=1 interrupts=0 flush=0 ticks=1000000000000");
        api.action("InstanceStart");
        // Each is made durable, which takes the host's disk as long as it may.
        until("writes are done", || api.metric("kindling_block_writes_total{id=\"a\"}") >= 8);
        assert_eq!(api.metric("kindling_block_write_errors_total{id=\"a\"}"), 0, "{engine}");
        api.terminate();
    }
}
