//! Images: read-only EROFS files, named and content-addressed.

mod archive;
pub mod erofs;
pub mod import;
pub mod name;
pub mod store;
mod unpack;

pub use name::ImageName;
pub use store::{Image, Reference, Store, StoreError};
