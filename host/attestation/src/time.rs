//! Dates of the collateral's JSON (RFC 3339 in UTC, whole seconds) from and to seconds since 1970.

const DAY: u64 = 86_400;

/// `2026-02-01T14:49:26Z`.
pub fn format(unix_s: u64) -> String {
    let (year, month, day) = civil(unix_s / DAY);
    let second = unix_s % DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Reads `2026-02-01T14:49:26Z`, 1970 to 9999. `None` for anything else.
pub fn parse(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let shape = bytes.len() == 20
        && bytes.iter().zip(b"0000-00-00T00:00:00Z").all(|(&byte, &form)| {
            if form == b'0' {
                byte.is_ascii_digit()
            } else {
                byte == form
            }
        });
    if !shape {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let days = days(year, month, day)?;
    (hour < 24 && minute < 60 && second < 60).then(|| days * DAY + hour * 3600 + minute * 60 + second)
}

/// Days since 1970 of a date, if there is such a date. (Howard Hinnant, "chrono-compatible low-level date algorithms".)
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year_from_march = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = days.checked_sub(719_468)?;
    (civil(days) == (year, month, day)).then_some(days)
}

fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        assert_eq!(format(0), "1970-01-01T00:00:00Z");
        assert_eq!(format(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(parse("2026-11-20T00:00:00Z"), Some(1_795_132_800));
        for bad in [
            "2026-02-30T00:00:00Z",
            "2026-02-01T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-02-01 14:49:26Z",
            "",
            "é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn dates_come_back(unix_s in 0u64..253_402_300_800) {
            proptest::prop_assert_eq!(parse(&format(unix_s)), Some(unix_s));
        }
    }
}
