//! Dates and times of day, as people and servers write them.

/// A moment in UTC, to the second, from the seconds since 1970: `2026-11-29T20:06:24`.
pub fn utc(secs: u64) -> String {
    let (day, rest) = (secs / 86_400, secs % 86_400);
    // Days since 1970 to a date in the proleptic Gregorian calendar (H. Hinnant, `civil_from_days`): eras of 400 years
    // that begin on 1 March 0000.
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let date = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}")
}
