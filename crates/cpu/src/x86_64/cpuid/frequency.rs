//! Intel's frequency leaves, 0x15 and 0x16, which spare a guest without KVM's clock the calibration.

use super::table::Table;
use super::{CpuidOptions, raise_max_leaf};
use crate::Error;

const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;

/// What drives the timer of KVM's local APIC, in kHz: 1 GHz unless KVM_CAP_X86_APIC_BUS_CYCLES_NS changed it.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// The denominator of the ratio of TSC and crystal.
const RATIO_DENOMINATOR: u64 = 500;

pub(super) fn apply(table: &mut Table, options: &CpuidOptions) -> Result<(), Error> {
    let Some(tsc_khz) = options.tsc_khz else { return Ok(()) };
    let Some((numerator, crystal_hz)) = crystal(tsc_khz) else { return Ok(()) };
    let mhz = tsc_khz.saturating_add(500).checked_div(1000).unwrap_or_default().min(u32::from(u16::MAX));
    table.replace(LEAF_TSC, [RATIO_DENOMINATOR as u32, numerator, crystal_hz, 0]);
    table.replace(LEAF_FREQUENCY, [mhz, mhz, 0, 0]);
    raise_max_leaf(table, LEAF_FREQUENCY)
}

/// The numerator of the ratio and the crystal's frequency in Hz, a whole number of kHz.
///
/// The crystal also drives the APIC timer, so it has to be 1 GHz, nearly: what the fixed denominator loses in the ratio is
/// made up for in the crystal, which leaves the TSC exact to half a millionth and moves the APIC timer by less than a
/// thousandth. The denominator is that small because Linux multiplies the crystal's kHz by the numerator in 32 bits;
/// a TSC too fast for that (8.5 GHz) or too slow to be one (1 MHz) is not announced.
fn crystal(tsc_khz: u32) -> Option<(u32, u32)> {
    let tsc_khz = u64::from(tsc_khz);
    let scaled = tsc_khz.checked_mul(RATIO_DENOMINATOR)?;
    let numerator = divide_rounded(scaled, u64::from(APIC_BUS_KHZ))?;
    let crystal_khz = divide_rounded(scaled, numerator)?;
    u32::try_from(crystal_khz.checked_mul(numerator)?).ok()?;
    Some((u32::try_from(numerator).ok()?, u32::try_from(crystal_khz.checked_mul(1000)?).ok()?))
}

fn divide_rounded(dividend: u64, divisor: u64) -> Option<u64> {
    dividend.checked_add(divisor >> 1)?.checked_div(divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux makes of the leaf (`native_calibrate_tsc`), in kHz, in 32-bit arithmetic as there.
    fn as_linux_reads_it(numerator: u32, crystal_hz: u32) -> u32 {
        (crystal_hz / 1000).checked_mul(numerator).expect("Linux would overflow") / RATIO_DENOMINATOR as u32
    }

    #[test]
    fn tsc_is_exact_to_a_millionth_and_the_apic_bus_to_a_thousandth() {
        for tsc_khz in (1_000_000..=8_500_000).step_by(997).chain([2_596_146, 2_000_300, 2_999_900]) {
            let (numerator, crystal_hz) = crystal(tsc_khz).unwrap();
            let error = as_linux_reads_it(numerator, crystal_hz).abs_diff(tsc_khz);
            assert!(error <= 1 + tsc_khz / 1_000_000, "{tsc_khz} kHz is off by {error} kHz");
            assert!(
                crystal_hz.abs_diff(1_000_000_000) <= 1_000_000,
                "{tsc_khz} kHz: APIC at {crystal_hz} Hz"
            );
        }
    }

    #[test]
    fn absurd_frequencies_are_not_announced() {
        assert_eq!(crystal(0), None);
        assert_eq!(crystal(999), None);
        assert_eq!(crystal(u32::MAX), None);
        for tsc_khz in 0..100_000 {
            if let Some((numerator, crystal_hz)) = crystal(tsc_khz) {
                as_linux_reads_it(numerator, crystal_hz);
            }
        }
    }
}
