//! Patterns for tags, in which `*` stands for any letters.

use std::fmt;
use std::str::FromStr;

/// A pattern: `*` stands for any letters or none, and every other letter for itself.
///
/// It is the form that ECR's filters for tags have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wildcard(String);

impl Wildcard {
    /// Takes a text as a pattern; all texts are.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// Whether `text` as a whole fits.
    pub fn matches(&self, text: &str) -> bool {
        let Some((begin, rest)) = self.0.split_once('*') else {
            return self.0 == text;
        };
        let Some(mut text) = text.strip_prefix(begin) else {
            return false;
        };
        let mut parts = rest.split('*').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return text.ends_with(part);
            }
            // The first place leaves the most for those that follow.
            match text.find(part) {
                Some(at) => text = text.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        true
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Wildcard {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_letters() {
        for (pattern, text, fits) in [
            ("prod", "prod", true),
            ("prod", "prod-1", false),
            ("prod*", "prod", true),
            ("prod*", "prod-1", true),
            ("prod*", "a-prod", false),
            ("*prod", "a-prod", true),
            ("*prod", "prod-1", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*a*", "bab", true),
            ("*a*", "bbb", false),
            ("v1.*", "v1x0", false),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(
                Wildcard::new(pattern).matches(text),
                fits,
                "{pattern} {text}"
            );
        }
    }
}
