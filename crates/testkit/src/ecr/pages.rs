//! Long lists in pages, with tokens that only the server understands.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::Core;
use super::service::Failure;

impl Core {
    /// The page of `items` that a request asks for, and the token of the next.
    pub(super) fn page(
        &self,
        items: Vec<Value>,
        token: &Value,
        asked: &Value,
        (usual, largest): (usize, usize),
    ) -> Result<(Vec<Value>, Option<String>), Failure> {
        let asked = match asked {
            Value::Number(number) => number.as_u64(),
            // Lambda's parameters come in the query.
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let asked = asked.and_then(|asked| usize::try_from(asked).ok());
        let size = asked
            .unwrap_or(usual)
            .min(largest)
            .min(self.page_size.unwrap_or(usize::MAX));
        if size == 0 {
            return Err(Failure::invalid("a page has at least one item"));
        }
        let start = match token.as_str() {
            None => 0,
            Some(token) => position(token)
                .filter(|start| *start <= items.len())
                .ok_or_else(|| Failure::invalid("The specified parameter is invalid: token"))?,
        };
        let end = items.len().min(start + size);
        let next = (end < items.len()).then(|| URL_SAFE_NO_PAD.encode(format!("at {end}")));
        let page = items.into_iter().skip(start).take(size).collect();
        Ok((page, next))
    }
}

fn position(token: &str) -> Option<usize> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix("at ")?.parse().ok()
}
