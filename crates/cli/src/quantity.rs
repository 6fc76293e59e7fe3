//! Numbers with a unit, as people write them.

/// A text as the digits that it begins with, and what follows them.
pub(crate) fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// So many of a unit, when there is such a unit and the number is not too large.
pub(crate) fn counted(number: &str, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, size) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*size)
}
