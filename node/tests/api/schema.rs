//! Whether an answer is what the OpenAPI document says: the part of JSON Schema that our document uses. A keyword that
//! is not known here fails the test, so that nothing goes unchecked.

use serde_json::{Map, Value};

/// Keywords that say nothing about what is valid here.
const WORDS_ONLY: [&str; 6] = [
    "description",
    "example",
    "format",
    "title",
    "deprecated",
    "default",
];

/// A document whose schemas answers are held against.
pub(crate) struct Document(pub(crate) Value);

impl Document {
    /// Checks the body of an answer to an operation.
    pub(crate) fn check(&self, method: &str, path: &str, status: u16, body: &Value) {
        let responses = &self.0["paths"][path][method]["responses"];
        let by_status = &responses[status.to_string()];
        let response = if by_status.is_null() {
            assert!(
                status >= 400,
                "{method} {path}: {status} is not in the document"
            );
            &responses["default"]
        } else {
            by_status
        };
        let contents = response["content"].as_object().unwrap();
        let (_, content) = contents.iter().next().unwrap();
        let at = format!("{method} {path} {status}");
        if let Err(error) = self.valid(&content["schema"], body, &at) {
            panic!("{error}\nin {body}");
        }
    }

    pub(crate) fn valid(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let Some(schema) = schema.as_object() else {
            return Err(format!("{at}: no schema"));
        };
        for (keyword, rule) in schema {
            self.keyword(schema, keyword, rule, value)
                .map_err(|error| format!("{at}: {error}"))?;
        }
        Ok(())
    }

    fn keyword(
        &self,
        schema: &Map<String, Value>,
        keyword: &str,
        rule: &Value,
        value: &Value,
    ) -> Result<(), String> {
        match keyword {
            "$ref" => {
                let name = rule.as_str().and_then(|it| it.strip_prefix('#'));
                let target = name.and_then(|it| self.0.pointer(it));
                self.valid(
                    target.ok_or_else(|| format!("no {rule}"))?,
                    value,
                    &rule.to_string(),
                )
            }
            "type" => has_type(rule, value),
            "enum" => one_of_values(rule, value),
            "minimum" => match (value.as_f64(), rule.as_f64()) {
                (Some(value), Some(least)) if value < least => Err(format!("{value} < {least}")),
                _ => Ok(()),
            },
            "required" => required(rule, value),
            "properties" => self.properties(rule, value),
            "additionalProperties" if rule == false => closed(schema, value),
            "additionalProperties" => self.additional(schema, rule, value),
            "propertyNames" => {
                let names = value.as_object().into_iter().flat_map(Map::keys);
                let mut names = names.map(|name| Value::from(name.as_str()));
                names.try_for_each(|name| self.valid(rule, &name, "a name"))
            }
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                items.try_for_each(|item| self.valid(rule, item, "an item"))
            }
            "allOf" => {
                let mut all = rule.as_array().into_iter().flatten();
                all.try_for_each(|schema| self.valid(schema, value, "allOf"))
            }
            "oneOf" => {
                let all = rule.as_array().into_iter().flatten();
                match all.filter(|it| self.valid(it, value, "").is_ok()).count() {
                    1 => Ok(()),
                    count => Err(format!("{count} of oneOf fit {value}")),
                }
            }
            other if WORDS_ONLY.contains(&other) => Ok(()),
            other => Err(format!("the keyword {other} is not known to this test")),
        }
    }

    fn properties(&self, rule: &Value, value: &Value) -> Result<(), String> {
        for (name, schema) in rule.as_object().into_iter().flatten() {
            if let Some(value) = value.get(name) {
                self.valid(schema, value, name)?;
            }
        }
        Ok(())
    }

    fn additional(
        &self,
        schema: &Map<String, Value>,
        rule: &Value,
        value: &Value,
    ) -> Result<(), String> {
        let known = schema.get("properties").and_then(Value::as_object);
        for (name, value) in value.as_object().into_iter().flatten() {
            if known.is_none_or(|known| !known.contains_key(name)) {
                self.valid(rule, value, name)?;
            }
        }
        Ok(())
    }
}

fn has_type(rule: &Value, value: &Value) -> Result<(), String> {
    let one = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let fits = match rule {
        Value::String(name) => one(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(one),
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(format!("{value} is no {rule}"))
    }
}

fn one_of_values(rule: &Value, value: &Value) -> Result<(), String> {
    if rule.as_array().is_some_and(|all| all.contains(value)) {
        Ok(())
    } else {
        Err(format!("{value} is none of {rule}"))
    }
}

fn required(rule: &Value, value: &Value) -> Result<(), String> {
    for name in rule.as_array().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if value.get(name).is_none() {
            return Err(format!("{name} is missing"));
        }
    }
    Ok(())
}

fn closed(schema: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let known = schema.get("properties").and_then(Value::as_object);
    for (name, _) in value.as_object().into_iter().flatten() {
        if known.is_none_or(|known| !known.contains_key(name)) {
            return Err(format!("{name} is not in the schema"));
        }
    }
    Ok(())
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let document = Document(
        serde_json::json!({"components": {"schemas": {"P": {"type": "string", "enum": ["a"]}}}}),
    );
    let schema = serde_json::json!({
        "type": "object",
        "required": ["id"],
        "properties": {"id": {"$ref": "#/components/schemas/P"}, "n": {"type": ["integer", "null"], "minimum": 0}},
        "additionalProperties": false,
    });
    for (value, good) in [
        (serde_json::json!({"id": "a"}), true),
        (serde_json::json!({"id": "a", "n": null}), true),
        (serde_json::json!({"id": "b"}), false),
        (serde_json::json!({}), false),
        (serde_json::json!({"id": "a", "n": -1}), false),
        (serde_json::json!({"id": "a", "n": "1"}), false),
        (serde_json::json!({"id": "a", "x": 1}), false),
    ] {
        assert_eq!(document.valid(&schema, &value, "").is_ok(), good, "{value}");
    }
    let unknown = serde_json::json!({"pattern": "x"});
    assert!(
        document
            .valid(&unknown, &serde_json::json!("x"), "")
            .is_err()
    );
}
