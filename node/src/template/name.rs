//! Names of templates: as names of images, and never mistaken for one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::ImageName;
use crate::image::name::NameError;

/// A valid name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateName(ImageName);

impl TemplateName {
    /// Its entry in the store; another for every name, and never without a colon.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.0.escaped()
    }
}

impl FromStr for TemplateName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        name.parse().map(Self)
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
