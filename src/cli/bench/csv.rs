//! Objects of JSON as lines of CSV (RFC 4180), with the names of the first one's fields above them.

use std::fmt;
use std::io;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// A table that grows line by line. All objects have the same fields.
#[derive(Debug, Default)]
pub(super) struct Csv {
    has_header: bool,
}

impl Csv {
    /// The lines that an object adds.
    pub(super) fn lines(&mut self, json: &str) -> io::Result<Vec<String>> {
        let Fields(fields) = serde_json::from_str(json)?;
        let mut lines = Vec::new();
        if !self.has_header {
            self.has_header = true;
            let names = fields.iter().map(|(name, _)| quoted(name));
            lines.push(names.collect::<Vec<_>>().join(","));
        }
        let values = fields.iter().map(|(_, value)| quoted(&text(value)));
        lines.push(values.collect::<Vec<_>>().join(","));
        Ok(lines)
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

/// An object's fields in their order, which a map of serde_json does not keep.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_what_is_not_known_is_empty() {
        let mut csv = Csv::default();
        let first = csv.lines(r#"{"z":1,"a":null,"m":2.5,"t":"a,\"b\"","r":["x","y"]}"#);
        assert_eq!(first.unwrap(), ["z,a,m,t,r", r#"1,,2.5,"a,""b""",x; y"#]);
        let second = csv.lines(r#"{"z":true,"a":"","m":0,"t":"two\nlines","r":[]}"#);
        assert_eq!(second.unwrap(), ["true,,0,\"two\nlines\","]);
        assert!(csv.lines("[]").is_err());
    }
}
