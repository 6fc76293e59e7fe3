//! YAML as templates have it, with tags of `CloudFormation`.

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

/// A value. What an alias stands for is not looked up: nothing that is asked for here is written so,
/// and copies of copies have no end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Yaml {
    Text(String),
    List(Vec<Yaml>),
    /// In the order of the file.
    Map(Vec<(String, Yaml)>),
    /// `!Ref Name`, `!Sub "…"` and their like, and aliases.
    Tagged(String, Box<Yaml>),
}

/// As deep as values may lie in each other.
const MOST_DEPTH: usize = 64;

/// A list or map that is not finished.
enum Open {
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>, Option<String>),
}

impl Yaml {
    /// Reads the first document; `None` when it is not YAML.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut open: Vec<(Open, Option<String>)> = Vec::new();
        for event in Parser::new_from_str(text) {
            let (event, _) = event.ok()?;
            let value = match event {
                Event::Scalar(text, style, _, tag) => {
                    let is_null = style == ScalarStyle::Plain && matches!(&*text, "~" | "null");
                    let text = if is_null {
                        String::new()
                    } else {
                        text.into_owned()
                    };
                    tagged(Self::Text(text), tag.as_deref().and_then(own_tag))
                }
                Event::Alias(_) => Self::Tagged("*".to_owned(), Box::new(Self::empty())),
                Event::SequenceStart(_, tag) => {
                    open.push((Open::List(Vec::new()), tag.as_deref().and_then(own_tag)));
                    continue;
                }
                Event::MappingStart(_, tag) => {
                    let map = Open::Map(Vec::new(), None);
                    open.push((map, tag.as_deref().and_then(own_tag)));
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    let (ended, tag) = open.pop()?;
                    let value = match ended {
                        Open::List(list) => Self::List(list),
                        Open::Map(map, _) => Self::Map(map),
                    };
                    tagged(value, tag)
                }
                Event::DocumentEnd | Event::StreamEnd => return Some(Self::empty()),
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => continue,
            };
            if open.len() > MOST_DEPTH {
                return None;
            }
            match open.last_mut() {
                None => return Some(value),
                Some((Open::List(list), _)) => list.push(value),
                Some((Open::Map(map, key), _)) => match key.take() {
                    Some(key) => map.push((key, value)),
                    None => *key = Some(value.text().unwrap_or_default().to_owned()),
                },
            }
        }
        None
    }

    fn empty() -> Self {
        Self::Text(String::new())
    }

    /// The member of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let (_, value) = self.members().iter().find(|(name, _)| name == key)?;
        Some(value)
    }

    /// What is reached by one key after the other.
    pub(super) fn at(&self, keys: &[&str]) -> Option<&Self> {
        keys.iter().try_fold(self, |value, key| value.get(key))
    }

    /// The text at these keys.
    pub(super) fn text_at(&self, keys: &[&str]) -> Option<&str> {
        self.at(keys)?.text()
    }

    /// All members, in the order of the file.
    pub(super) fn members(&self) -> &[(String, Self)] {
        match self {
            Self::Map(members) => members,
            _ => &[],
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// Plain text that is not empty.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// The name in `!Ref NAME`, or in `Ref: NAME`.
    pub(super) fn reference(&self) -> Option<&str> {
        match self {
            Self::Tagged(tag, value) if tag == "Ref" => value.text(),
            Self::Map(members) if members.len() == 1 => self.text_at(&["Ref"]),
            _ => None,
        }
    }
}

fn tagged(value: Yaml, tag: Option<String>) -> Yaml {
    match tag {
        Some(tag) => Yaml::Tagged(tag, Box::new(value)),
        None => value,
    }
}

/// A tag that YAML itself does not know.
fn own_tag(tag: &Tag) -> Option<String> {
    (!tag.is_yaml_core_schema()).then(|| tag.suffix.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_cloudformation_are_told_from_text() {
        let yaml = Yaml::parse(
            "a: !Ref B\nb: !Sub 'x${C}'\nc: {Ref: D}\nd: [1, !GetAtt E.F, ~]\ne: !If\n  - x\n  - y: z\n",
        )
        .unwrap();
        assert_eq!(yaml.get("a").unwrap().reference(), Some("B"));
        assert_eq!(yaml.text_at(&["b"]), None);
        assert_eq!(yaml.get("c").unwrap().reference(), Some("D"));
        let items = yaml.get("d").unwrap().items();
        assert_eq!(items[0].text(), Some("1"));
        assert_eq!(items[1].text(), None);
        assert_eq!(items[2].text(), None);
        assert!(matches!(yaml.get("e"), Some(Yaml::Tagged(tag, _)) if tag == "If"));
    }

    #[test]
    fn what_is_made_to_hurt_ends() {
        let bomb = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        assert_eq!(
            Yaml::parse(bomb).unwrap().at(&["c"]).unwrap().items().len(),
            2
        );
        for text in [
            "[".repeat(100_000),
            "a: b: c".to_owned(),
            "- ".repeat(5000),
            "\t{".to_owned(),
        ] {
            assert_eq!(Yaml::parse(&text), None);
        }
        assert_eq!(
            Yaml::parse("").and_then(|it| it.text().map(str::to_owned)),
            None
        );
    }
}
