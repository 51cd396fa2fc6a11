//! Checking a value against its shape.

use serde_json::Value;

use super::{Kind, Model, Shape, serialization, unknown};
use crate::answer::ServiceError;

/// A value that is quoted in a text is cut off here.
const SHOWN_CHARS_MAX: usize = 1024;
/// More errors than this are not counted.
const ERRORS_MAX: usize = 100;

impl Model {
    /// All that is wrong with a value, as the service words it.
    pub(super) fn validate(&self, shape: &str, value: &Value) -> Result<(), ServiceError> {
        let mut errors = Vec::new();
        self.check(shape, value, "", &mut errors)?;
        let count = match errors.len() {
            0 => return Ok(()),
            1 => "1 validation error detected".to_owned(),
            count => format!("{count} validation errors detected"),
        };
        let text = format!("{count}: {}", errors.join("; "));
        Err(ServiceError::new(400, "ValidationException", text))
    }

    fn check(
        &self,
        name: &str,
        value: &Value,
        path: &str,
        errors: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        let Some(shape) = self.shapes.get(name) else { return Ok(()) };
        if errors.len() >= ERRORS_MAX {
            return Ok(());
        }
        match (shape.kind, value) {
            (Kind::Structure, Value::Object(_)) => self.check_structure(shape, value, path, errors),
            (Kind::List, Value::Array(items)) => {
                self.constrain(name, shape, value, path, errors);
                self.check_items(shape, items, value, path, errors)
            }
            (Kind::Map, Value::Object(entries)) => {
                self.constrain(name, shape, value, path, errors);
                self.check_entries(shape, entries, value, path, errors)
            }
            (Kind::String, Value::String(_)) | (Kind::Boolean, Value::Bool(_)) => {
                self.constrain(name, shape, value, path, errors);
                Ok(())
            }
            (Kind::Integer | Kind::Long, Value::Number(number)) if number.is_i64() => {
                let is_small = number.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
                if shape.kind == Kind::Integer && !is_small {
                    return Err(serialization(&format!("the number at '{path}' is too large")));
                }
                self.constrain(name, shape, value, path, errors);
                Ok(())
            }
            (kind, _) => {
                let kind = format!("{kind:?}").to_lowercase();
                Err(serialization(&format!("the value at '{path}' is not of type {kind}")))
            }
        }
    }

    fn check_structure(
        &self,
        shape: &Shape,
        value: &Value,
        path: &str,
        errors: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        for member in &shape.members {
            let path = join(path, &member.name);
            match value.get(&member.name).filter(|value| !value.is_null()) {
                Some(value) => self.check(&member.shape, value, &path, errors)?,
                None if member.required => {
                    errors.push(failed("Value null", &path, "Member must not be null"))
                }
                None => {}
            }
        }
        let given = value.as_object().into_iter().flatten();
        let mut count = 0;
        for (name, _) in given.filter(|(_, value)| !value.is_null()) {
            count += 1;
            if !shape.members.iter().any(|member| member.name == *name) {
                return Err(unknown(&join(path, name)));
            }
        }
        if shape.union && count != 1 {
            let text = format!("Exactly one member has to be set at '{path}'; {count} are.");
            return Err(ServiceError::new(400, "ValidationException", text));
        }
        Ok(())
    }

    /// What simple items do not satisfy is said of the list, once; the insides of others are looked at.
    fn check_items(
        &self,
        shape: &Shape,
        items: &[Value],
        list: &Value,
        path: &str,
        errors: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        let Some(name) = shape.member.as_deref() else { return Ok(()) };
        let is_simple = self.shapes.get(name).is_some_and(|shape| shape.kind == Kind::String);
        if is_simple {
            return self.check_simple(name, items.iter(), list, path, "Member", errors);
        }
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}.{}.member", index + 1);
            self.check(name, item, &path, errors)?;
        }
        Ok(())
    }

    fn check_entries(
        &self,
        shape: &Shape,
        entries: &serde_json::Map<String, Value>,
        map: &Value,
        path: &str,
        errors: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        if let Some(name) = shape.key.as_deref() {
            let keys: Vec<Value> = entries.keys().map(|key| Value::String(key.clone())).collect();
            self.check_simple(name, keys.iter(), map, path, "Map keys", errors)?;
        }
        match shape.value.as_deref() {
            Some(name) => self.check_simple(name, entries.values(), map, path, "Map value", errors),
            None => Ok(()),
        }
    }

    fn check_simple<'a>(
        &self,
        name: &str,
        items: impl Iterator<Item = &'a Value>,
        whole: &Value,
        path: &str,
        what: &str,
        errors: &mut Vec<String>,
    ) -> Result<(), ServiceError> {
        let Some(shape) = self.shapes.get(name) else { return Ok(()) };
        let mut inner = Vec::new();
        for item in items {
            self.check(name, item, path, &mut inner)?;
        }
        if !inner.is_empty() {
            let rules = self.rules(shape).join(", ");
            let value = if self.is_secret(shape) {
                "Value".into()
            } else {
                format!("Value '{}'", show(whole))
            };
            errors.push(failed(
                &value,
                path,
                &format!("{what} must satisfy constraint: [{rules}]"),
            ));
        }
        Ok(())
    }

    fn constrain(
        &self,
        name: &str,
        shape: &Shape,
        value: &Value,
        path: &str,
        errors: &mut Vec<String>,
    ) {
        let (size, word) = match value {
            Value::String(text) => (text.chars().count() as i64, "length"),
            Value::Array(items) => (items.len() as i64, "length"),
            Value::Object(entries) => (entries.len() as i64, "length"),
            value => (value.as_i64().unwrap_or(0), "value"),
        };
        let mut fail = |rule: String| {
            let quoted = if self.is_secret(shape) {
                "Value".into()
            } else {
                format!("Value '{}'", show(value))
            };
            errors.push(failed(&quoted, path, &rule));
        };
        if let Some(max) = shape.max.filter(|max| size > *max) {
            fail(format!("Member must have {word} less than or equal to {max}"));
        }
        if let Some(min) = shape.min.filter(|min| size < *min) {
            fail(format!("Member must have {word} greater than or equal to {min}"));
        }
        let Value::String(text) = value else { return };
        if let (Some(pattern), Some(regex)) = (&shape.pattern, self.patterns.get(name))
            && !regex.is_match(text)
        {
            fail(format!("Member must satisfy regular expression pattern: {pattern}"));
        }
        if let Some(words) = shape.words.as_ref().filter(|words| !words.contains(text)) {
            fail(format!("Member must satisfy enum value set: [{}]", words.join(", ")));
        }
    }

    /// Whether a value, or what is in it, must not be repeated.
    fn is_secret(&self, shape: &Shape) -> bool {
        let inner = [&shape.member, &shape.key, &shape.value];
        let mut inner = inner.into_iter().flatten().filter_map(|name| self.shapes.get(name));
        shape.sensitive || inner.any(|shape| shape.sensitive)
    }

    /// All constraints of a shape, in words.
    fn rules(&self, shape: &Shape) -> Vec<String> {
        let mut rules = Vec::new();
        if let Some(max) = shape.max {
            rules.push(format!("Member must have length less than or equal to {max}"));
        }
        if let Some(min) = shape.min {
            rules.push(format!("Member must have length greater than or equal to {min}"));
        }
        if let Some(pattern) = &shape.pattern {
            rules.push(format!("Member must satisfy regular expression pattern: {pattern}"));
        }
        if let Some(words) = &shape.words {
            rules.push(format!("Member must satisfy enum value set: [{}]", words.join(", ")));
        }
        rules
    }
}

fn failed(value: &str, path: &str, rule: &str) -> String {
    format!("{value} at '{path}' failed to satisfy constraint: {rule}")
}

/// Members are named with a small first letter in texts, whatever they are called on the wire.
fn join(path: &str, name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    let name: String = first.into_iter().chain(letters).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

fn show(value: &Value) -> String {
    let mut text = show_all(value);
    if let Some((place, _)) = text.char_indices().nth(SHOWN_CHARS_MAX) {
        text.truncate(place);
        text.push_str("...");
    }
    text
}

fn show_all(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", list(items.iter().map(show_all).collect())),
        Value::Object(entries) => {
            let entry = |(name, value): (&String, &Value)| format!("{name}={}", show_all(value));
            format!("{{{}}}", list(entries.iter().map(entry).collect()))
        }
        other => other.to_string(),
    }
}
