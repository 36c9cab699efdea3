//! Dates of the Gregorian calendar in UTC.

/// Days from 1970-01-01 to a date of the Gregorian calendar.
pub(super) fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Counted in years from March on, so that the leap day is a year's last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// The last whole day before a time, as TOML writes a date.
pub(crate) fn date_before(unix_s: u64) -> String {
    // Inverse of `days_since_1970`, by the same count of years from March on.
    let days = i64::try_from(unix_s / 86_400).unwrap_or(i64::MAX / 2).saturating_sub(1) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_both_ways() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        for day in [0_u64, 58, 59, 60, 365, 11_016, 20_000, 47_540] {
            let text = date_before((day + 1) * 86_400);
            let numbers: Vec<i64> = text.split('-').map(|part| part.parse().unwrap()).collect();
            assert_eq!(
                days_since_1970(numbers[0], numbers[1], numbers[2]),
                day as i64,
                "{text}"
            );
        }
    }
}
