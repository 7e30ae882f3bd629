//! Names of images: `repository[:tag]`, the tag `latest` where absent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest repository in bytes: its file name in the store has to stay under 255 (ext4, XFS, btrfs)
/// with every `/` taking three bytes.
const MAX_REPOSITORY: usize = 64;

/// Longest tag in bytes, a limit that registries share.
const MAX_TAG: usize = 64;

const DEFAULT_TAG: &str = "latest";

/// A valid name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    repository: String,
    tag: String,
}

/// Why a name is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name of an image or template: {reason}. A name is lower-case letters, digits and . _ - / (no empty, . or .. part), then perhaps :tag"
)]
pub struct NameError {
    name: String,
    reason: String,
}

impl ImageName {
    /// The name of its file in the store; another for every name.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.json", self.escaped())
    }

    /// The name without slashes; another for every name.
    pub(crate) fn escaped(&self) -> String {
        format!("{}:{}", self.repository.replace('/', "%2f"), self.tag)
    }
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let error = |reason: String| NameError {
            name: name.into(),
            reason,
        };
        let (repository, tag) = name.split_once(':').unwrap_or((name, DEFAULT_TAG));
        if repository.is_empty() || repository.len() > MAX_REPOSITORY {
            return Err(error(format!(
                "the part before the tag has {} bytes, 1 to {MAX_REPOSITORY} are allowed",
                repository.len()
            )));
        }
        if tag.is_empty() || tag.len() > MAX_TAG {
            return Err(error(format!(
                "the tag has {} bytes, 1 to {MAX_TAG} are allowed",
                tag.len()
            )));
        }
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
        if let Some(bad) = repository.chars().find(|c| !good(*c) && *c != '/') {
            return Err(error(format!("{bad:?} is not allowed")));
        }
        if let Some(bad) = tag.chars().find(|c| !good(*c) && !c.is_ascii_uppercase()) {
            return Err(error(format!("{bad:?} is not allowed in a tag")));
        }
        if let Some(part) = repository
            .split('/')
            .find(|part| matches!(*part, "" | "." | ".."))
        {
            return Err(error(format!("it has the part {part:?}")));
        }
        Ok(Self {
            repository: repository.into(),
            tag: tag.into(),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl TryFrom<String> for ImageName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_names() {
        for (given, full, file) in [
            ("python", "python:latest", "python:latest.json"),
            (
                "debian/python:3.11",
                "debian/python:3.11",
                "debian%2fpython:3.11.json",
            ),
            ("a.b_c-d/e:V1", "a.b_c-d/e:V1", "a.b_c-d%2fe:V1.json"),
        ] {
            let name: ImageName = given.parse().unwrap();
            assert_eq!(name.to_string(), full);
            assert_eq!(name.file_name(), file);
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let long = "a".repeat(65);
        for (name, reason) in [
            ("", "0 bytes"),
            ("Python", "'P'"),
            ("a b", "' '"),
            ("../etc", "\"..\""),
            ("a/./b", "\".\""),
            ("/a", "\"\""),
            ("a//b", "\"\""),
            ("a/", "\"\""),
            ("a:", "tag has 0 bytes"),
            ("a:b/c", "'/'"),
            ("a:b:c", "':'"),
            ("a%2fb", "'%'"),
            ("a\0", "'\\0'"),
            (long.as_str(), "65 bytes"),
        ] {
            let error = name.parse::<ImageName>().unwrap_err().to_string();
            assert!(error.contains(reason), "{name:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_becomes_a_plain_file_name(text in "\\PC{0,80}") {
            if let Ok(name) = text.parse::<ImageName>() {
                let file = name.file_name();
                prop_assert!(!file.contains('/') && file.len() < 255);
                prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
            }
        }
    }
}
