//! What is done with a balloon from outside, and what its worker has to tell.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kindling_virtio_device::{ConfigSpace, Settings, Subscription};

use crate::statistics::Statistics;
use crate::{Config, Error, PAGES_PER_MIB};

// The configuration space (VIRTIO 1.2, 5.5.4): 32-bit fields, little-endian.
/// Pages that the guest shall give up.
const NUM_PAGES: usize = 0;
/// Pages that it has given up.
const ACTUAL: usize = 4;
/// What the host wants of hinting.
const FREE_PAGE_HINT_CMD_ID: usize = 8;
/// Its size, with the poison value, which is not used.
const CONFIG_SIZE: usize = 16;

// What `free_page_hint_cmd_id` says (VIRTIO 1.2, 5.5.6.5): one of these, or a run of hinting.
/// The guest need not tell.
const CMD_ID_STOP: u32 = 0;
/// The guest can have its pages back.
const CMD_ID_DONE: u32 = 1;
/// The first run.
const FIRST_RUN: u32 = 2;

/// A balloon seen from outside.
pub struct Control {
    abilities: Config,
    config: Arc<ConfigSpace>,
    /// Seconds between two requests for statistics.
    interval: Arc<Settings<u16>>,
    told: Mutex<Told>,
}

/// What the guest told.
#[derive(Debug, Default)]
struct Told {
    statistics: Option<Statistics>,
    hinting: Hinting,
    /// The last run of hinting. The next is another, so that what is left of one never counts for the next.
    last_run: u32,
    /// Whether memory that the guest told of is being taken right now.
    is_taking: bool,
    /// Whether the guest gets its pages back as soon as it has told all.
    acknowledge_on_stop: bool,
}

/// How far the guest is with telling which of its memory is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hinting {
    /// The command that the host gave last: 0 for none yet, 1 for "you can have your pages back", else a run of hinting.
    pub host_command: u32,
    /// The command that the guest acknowledged last, 0 when it has told all; `None` before the first.
    pub guest_command: Option<u32>,
}

impl Control {
    pub(crate) fn new(abilities: Config) -> Result<Self, Error> {
        let config = ConfigSpace::new(&[0; CONFIG_SIZE]);
        let interval = Settings::new(abilities.statistics_interval_s);
        let control = Self { abilities, config, interval, told: Mutex::default() };
        control.set_amount_mib(abilities.amount_mib)?;
        Ok(control)
    }

    /// Says how many MiB the guest shall give up.
    ///
    /// # Errors
    ///
    /// [`Error::Amount`] for more than a guest can count.
    pub fn set_amount_mib(&self, amount_mib: u32) -> Result<(), Error> {
        let pages = amount_mib.checked_mul(PAGES_PER_MIB).ok_or(Error::Amount(amount_mib))?;
        self.config.update(|bytes| write(bytes, NUM_PAGES, pages));
        Ok(())
    }

    /// Pages of 4 KiB that the guest shall give up.
    pub fn target_pages(&self) -> u32 {
        self.read(NUM_PAGES)
    }

    /// Pages of 4 KiB that the guest says it has given up.
    pub fn actual_pages(&self) -> u32 {
        self.read(ACTUAL)
    }

    /// Asks for statistics in another interval, in seconds.
    ///
    /// # Errors
    ///
    /// [`Error::Switch`] for a balloon without statistics, and for 0 with one that has them.
    pub fn set_statistics_interval(&self, seconds: u16) -> Result<(), Error> {
        if (self.abilities.statistics_interval_s == 0) != (seconds == 0) {
            return Err(Error::Switch);
        }
        self.interval.change(|interval| *interval = seconds);
        Ok(())
    }

    /// What the guest told of its memory last, if it has told anything.
    ///
    /// # Errors
    ///
    /// [`Error::Unable`] for a balloon without statistics.
    pub fn statistics(&self) -> Result<Option<Statistics>, Error> {
        match self.abilities.statistics_interval_s {
            0 => Err(Error::Unable("statistics")),
            _ => Ok(self.told().statistics),
        }
    }

    /// Asks the guest to tell which of its memory is free. The host takes that memory; the guest keeps it from being used
    /// until [`Control::stop_hinting`], or until it has told all if `acknowledge_on_stop`. Linux keeps it only while it has
    /// enough other memory.
    ///
    /// # Errors
    ///
    /// [`Error::Unable`] for a balloon without hinting.
    pub fn start_hinting(&self, acknowledge_on_stop: bool) -> Result<(), Error> {
        self.check_hinting()?;
        let mut told = self.told();
        told.last_run = told.last_run.wrapping_add(1).max(FIRST_RUN);
        told.acknowledge_on_stop = acknowledge_on_stop;
        told.hinting.host_command = told.last_run;
        self.command(told.last_run);
        Ok(())
    }

    /// Lets the guest have back the memory that it told of. It is told so at once, or when the memory that is just being
    /// taken has been.
    ///
    /// # Errors
    ///
    /// [`Error::Unable`] for a balloon without hinting.
    pub fn stop_hinting(&self) -> Result<(), Error> {
        self.check_hinting()?;
        self.end_hinting(&mut self.told());
        Ok(())
    }

    /// How far the guest is with hinting.
    ///
    /// # Errors
    ///
    /// [`Error::Unable`] for a balloon without hinting.
    pub fn hinting(&self) -> Result<Hinting, Error> {
        self.check_hinting()?;
        Ok(self.told().hinting)
    }

    pub(crate) fn config(&self) -> &Arc<ConfigSpace> {
        &self.config
    }

    /// The driver may write only how much it has given up.
    pub(crate) fn driver_writes(&self, offset: u64, data: &[u8]) {
        if let Ok(data) = <[u8; 4]>::try_from(data)
            && offset == ACTUAL as u64
        {
            self.config.update_by_driver(|bytes| write(bytes, ACTUAL, u32::from_le_bytes(data)));
        }
    }

    /// The driver is gone, and with it all that it told.
    pub(crate) fn reset(&self) {
        let mut told = self.told();
        *told = Told { last_run: told.last_run, ..Told::default() };
        drop(told);
        self.config.update_by_driver(|bytes| {
            write(bytes, ACTUAL, 0);
            write(bytes, FREE_PAGE_HINT_CMD_ID, CMD_ID_STOP);
        });
    }

    pub(crate) fn watch_interval(&self) -> io::Result<Subscription<u16>> {
        self.interval.subscribe()
    }

    pub(crate) fn keep_statistics(&self, statistics: Statistics) {
        self.told().statistics = Some(statistics);
    }

    /// The guest begins or ends telling of free memory.
    pub(crate) fn guest_commands(&self, command: u32) {
        let mut told = self.told();
        told.hinting.guest_command = Some(command);
        if command == CMD_ID_STOP && told.acknowledge_on_stop {
            self.end_hinting(&mut told);
        }
    }

    /// Has `take` take memory that the guest tells of now, if it was asked for and is still wanted.
    ///
    /// Meanwhile the guest is not told that it can have its memory back: from then on it uses that, and the device must not
    /// change it any more (VIRTIO 1.2, 5.5.6.5.2). Whoever ends hinting does not wait for `take`, only the guest does.
    pub(crate) fn take_hinted<T>(&self, take: impl FnOnce() -> T) -> Option<T> {
        {
            let mut told = self.told();
            let Hinting { host_command, guest_command } = told.hinting;
            if host_command < FIRST_RUN || guest_command != Some(host_command) {
                return None;
            }
            told.is_taking = true;
        }
        let taken = take();
        let mut told = self.told();
        told.is_taking = false;
        if told.hinting.host_command == CMD_ID_DONE {
            self.command(CMD_ID_DONE);
        }
        Some(taken)
    }

    fn end_hinting(&self, told: &mut Told) {
        if told.hinting.host_command >= FIRST_RUN {
            told.hinting.host_command = CMD_ID_DONE;
            if !told.is_taking {
                self.command(CMD_ID_DONE);
            }
        }
    }

    fn command(&self, command: u32) {
        self.config.update(|bytes| write(bytes, FREE_PAGE_HINT_CMD_ID, command));
    }

    fn check_hinting(&self) -> Result<(), Error> {
        if self.abilities.free_page_hinting { Ok(()) } else { Err(Error::Unable("free page hinting")) }
    }

    fn read(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.config.read(at as u64, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A lock that outlives a panic: any values are valid.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a field of the configuration space.
fn write(bytes: &mut [u8], at: usize, value: u32) {
    for (to, from) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()) {
        *to = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hinting() -> Control {
        let control = Control::new(Config { free_page_hinting: true, ..Config::default() }).unwrap();
        control.start_hinting(false).unwrap();
        control.guest_commands(control.read(FREE_PAGE_HINT_CMD_ID));
        control
    }

    #[test]
    fn the_guest_gets_its_memory_back_when_what_is_being_taken_has_been() {
        let control = hinting();
        let run = control.read(FREE_PAGE_HINT_CMD_ID);
        let taken = control.take_hinted(|| {
            control.stop_hinting().unwrap();
            assert_eq!(control.hinting().unwrap().host_command, CMD_ID_DONE);
            control.read(FREE_PAGE_HINT_CMD_ID)
        });
        assert_eq!(taken, Some(run), "the guest is not told so yet");
        assert_eq!(control.read(FREE_PAGE_HINT_CMD_ID), CMD_ID_DONE);
        assert_eq!(control.take_hinted(|| ()), None);
    }

    #[test]
    fn a_run_that_begins_while_memory_is_being_taken_is_what_the_guest_finds() {
        let control = hinting();
        control.take_hinted(|| {
            control.stop_hinting().unwrap();
            control.start_hinting(false).unwrap();
        });
        let run = control.hinting().unwrap().host_command;
        assert!(run > FIRST_RUN);
        assert_eq!(control.read(FREE_PAGE_HINT_CMD_ID), run);
        assert_eq!(control.take_hinted(|| ()), None, "the guest has not begun");
    }
}
