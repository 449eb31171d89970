//! A log line's moment, for people and programs on any machine: RFC 3339 in UTC.

use std::fmt;
use std::time::Duration;

const DAY: u64 = 24 * 60 * 60;

/// So long after the beginning of 1970, as `2026-03-01T12:00:00.000000Z`.
pub struct Utc(pub Duration);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut day, second) = (self.0.as_secs() / DAY, self.0.as_secs() % DAY);
        let mut year = 1970;
        while day >= days_of_year(year) {
            day -= days_of_year(year);
            year += 1;
        }
        let february = if days_of_year(year) == 366 { 29 } else { 28 };
        let mut month = 1;
        for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if day < days {
                break;
            }
            day -= days;
            month += 1;
        }
        write!(f, "{year}-{month:02}-{:02}T", day + 1)?;
        write!(f, "{:02}:{:02}:{:02}.", second / 3600, second / 60 % 60, second % 60)?;
        write!(f, "{:06}Z", self.0.subsec_micros())
    }
}

fn days_of_year(year: u64) -> u64 {
    let leaps = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    if leaps { 366 } else { 365 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_767_225_599, "2025-12-31T23:59:59"),
            (1_767_225_600, "2026-01-01T00:00:00"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(Utc(Duration::from_secs(seconds)).to_string(), format!("{text}.000000Z"));
        }
        assert_eq!(Utc(Duration::new(12_345, 6_789_999)).to_string(), "1970-01-01T03:25:45.006789Z");
    }
}
