//! Templates: sandboxes that were booted once, warmed up and captured, to be cloned in milliseconds.
//!
//! [`store`] keeps them, [`build`](mod@build) makes one. What is in a template's directory:
//!
//! ```text
//! state, memory, window   the machine, written and read by rundlet-vmm alone
//! scratch.img             its writable disk, written and read by vhost-blk-ro alone
//! touched, first-command  which pages every clone touches first, and for its first command: by rundlet-vmm, from the
//!                         first clone
//! template.json           a Record: what it is and how to make it again
//! ```

pub mod build;
mod fit;
mod inspection;
mod name;
mod record;
pub mod store;
mod trial;
mod warm_up;

pub(crate) use build::{binding_now, guest_files, with_fitting};
pub use fit::{FitError, check};
pub use inspection::{FileSize, Inspection};
pub use name::TemplateName;
pub use record::{Binding, Recipe, Record, RecordError, WarmUp};
pub use store::{Template, TemplateError, Templates};
