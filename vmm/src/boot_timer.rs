//! The boot timer: a guest says that it has booted, and the log says how long that took.

use std::sync::Arc;
use std::time::Duration;

use kindling_device_bus::{Bus, BusDevice};
use kindling_memory_layout::x86_64::BOOT_TIMER;

use crate::clock::StartTimes;
use crate::error::Error;

/// What the guest writes once it has booted.
const BOOTED: u8 = 123;

struct BootTimer(StartTimes);

/// Puts the boot timer where guests look for it.
pub fn add(mmio: &Bus, started: StartTimes) -> Result<(), Error> {
    mmio.insert(BOOT_TIMER.start, BOOT_TIMER.size, Arc::new(BootTimer(started)))
        .map_err(Error::host("put the boot timer on the MMIO bus"))
}

impl BusDevice for BootTimer {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset, data) == (0, &[BOOTED]) {
            let (wall, cpu) = (self.0.elapsed(), self.0.processor_time());
            // Tools look for this line as it is.
            let text = |time: Duration| (time.as_micros(), time.as_millis());
            let ((wall_us, wall_ms), (cpu_us, cpu_ms)) = (text(wall), text(cpu));
            log::info!("Guest-boot-time = {wall_us} us {wall_ms} ms, {cpu_us} CPU us, {cpu_ms} CPU ms");
        }
    }
}
