//! Numbers of things in sentences, the same wherever they are said.

use crate::report::TakenAlong;

/// `1 file`, `12,000 files`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// `1 file is`, `12,000 files are`.
pub fn are(number: u64, noun: &str) -> String {
    format!("{} {}", count(number, noun), if number == 1 { "is" } else { "are" })
}

/// With a comma after every third digit.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `512 B`, `1.2 GiB`.
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be rounded to 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 change (3 B) is`, `2 changes (4.0 KiB) are`; without bytes where there are none, as of removals.
pub fn changes_are(number: u64, content_bytes: u64) -> String {
    let content = if content_bytes == 0 { String::new() } else { format!(" ({})", bytes(content_bytes)) };
    format!("{}{content} {}", count(number, "change"), if number == 1 { "is" } else { "are" })
}

/// `takes along 20 files that others staged: a, b, c and 17 more`.
pub fn takes_along(taken: &TakenAlong) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = taken.paths.iter().take(SHOWN).map(String::as_str).collect();
    let more = taken.files.saturating_sub(shown.len() as u64);
    let more = if more > 0 { format!(" and {} more", thousands(more)) } else { String::new() };
    format!("takes along {} that others staged: {}{more}", count(taken.files, "file"), shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(12000, "file"), "12,000 files");
        assert_eq!(are(1, "file"), "1 file is");
        assert_eq!(are(0, "file"), "0 files are");
        assert_eq!(changes_are(1, 3), "1 change (3 B) is");
        assert_eq!(changes_are(2, 0), "2 changes are");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1 << 20), "1.0 MiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
    }
}
