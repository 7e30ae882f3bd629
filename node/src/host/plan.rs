//! What a sandbox will be made of, found and locked in the store.

use std::sync::Arc;

use super::line::Held;
use super::model::{CreateSandbox, Source};
use super::renewal::Unfit;
use super::wish::{self, Named, Size};
use super::{HostError, Inner};
use crate::error::chain;
use crate::image::{Image, ImageName, StoreError};
use crate::scratch;
use crate::template::{self, Binding, Template, TemplateError, TemplateName, Templates};

/// An image or a template, locked.
#[derive(Debug)]
pub(super) struct Plan {
    source: Source,
    scratch_mib: u64,
    made_of: MadeOf,
}

#[derive(Debug)]
enum MadeOf {
    Image {
        image: Image,
        scratch: scratch::Template,
    },
    Template {
        template: Box<Template>,
        binding: Binding,
    },
}

impl Plan {
    /// Looks for what a wish names, and at the size that the sandbox will have.
    pub(super) fn new(inner: &Arc<Inner>, wish: &CreateSandbox) -> Result<(Self, Size), HostError> {
        let source = wish.source.clone();
        match wish::named(wish)? {
            Named::Image(name) => {
                let size = wish::boot_size(wish)?;
                Ok((Self::of_image(inner, source, &name, size)?, size))
            }
            Named::Template(name) => {
                let (plan, size) = Self::of_template(inner, source, &name)?;
                wish::check_clone(wish, size)?;
                Ok((plan, size))
            }
        }
    }

    fn of_image(
        inner: &Inner,
        source: Source,
        name: &ImageName,
        size: Size,
    ) -> Result<Self, HostError> {
        let image = inner.store.find(name).map_err(|error| match error {
            StoreError::NoSuchImage(name) | StoreError::Gone { name, .. } => HostError::NotFound {
                what: "image",
                name: name.to_string(),
            },
            StoreError::Path(error) => HostError::Io(error),
            other => HostError::invalid("source.image", chain(&other)),
        })?;
        let scratch = scratch::template(&inner.store, size.scratch_mib)
            .map_err(|error| HostError::invalid("scratch_mib", chain(&error)))?;
        Ok(Self {
            source,
            scratch_mib: size.scratch_mib,
            made_of: MadeOf::Image { image, scratch },
        })
    }

    /// The same once more, of a template that a VMM has refused: another one, built for this if there is none yet.
    pub(super) fn renewed(
        inner: &Arc<Inner>,
        wish: &CreateSandbox,
        refused: &str,
        why: String,
    ) -> Result<(Self, Size), HostError> {
        if let Named::Template(name) = wish::named(wish)? {
            // Not locked while it is built again: it is to go then.
            let record = find(inner, &name)?.record;
            if record.id == refused {
                let unfit = Unfit::Refused(why);
                inner.renewals.renew(inner, &record, &unfit)?;
            }
        }
        Self::new(inner, wish)
    }

    fn of_template(
        inner: &Arc<Inner>,
        source: Source,
        name: &TemplateName,
    ) -> Result<(Self, Size), HostError> {
        let (template, binding) = fitting(inner, name)?;
        let recipe = &template.record.recipe;
        let size = Size {
            memory_mib: recipe.memory_mib,
            vcpus: recipe.vcpus,
            scratch_mib: recipe.scratch_mib,
        };
        let template = Box::new(template);
        let plan = Self {
            source,
            scratch_mib: size.scratch_mib,
            made_of: MadeOf::Template { template, binding },
        };
        Ok((plan, size))
    }

    /// What its line is known by.
    pub(super) fn key(&self) -> String {
        match &self.made_of {
            MadeOf::Image { image, .. } => {
                let digest = image
                    .digest
                    .strip_prefix("sha256-")
                    .unwrap_or(&image.digest);
                format!(
                    "i-{}-{}",
                    digest.get(..16).unwrap_or(digest),
                    self.scratch_mib
                )
            }
            MadeOf::Template { template, .. } => format!("t-{}", template.record.id),
        }
    }

    pub(super) fn is_template(&self) -> bool {
        matches!(self.made_of, MadeOf::Template { .. })
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// The whole digest of the image, or the template's id.
    pub(super) fn made_of(&self) -> &str {
        match &self.made_of {
            MadeOf::Image { image, .. } => &image.digest,
            MadeOf::Template { template, .. } => &template.record.id,
        }
    }

    pub(super) fn scratch_mib(&self) -> u64 {
        self.scratch_mib
    }

    pub(super) fn image(&self) -> &Image {
        match &self.made_of {
            MadeOf::Image { image, .. } => image,
            MadeOf::Template { template, .. } => &template.image,
        }
    }

    pub(super) fn scratch(&self) -> &scratch::Template {
        match &self.made_of {
            MadeOf::Image { scratch, .. } => scratch,
            MadeOf::Template { template, .. } => &template.scratch,
        }
    }

    /// The locks, for a line to keep.
    pub(super) fn hold(self) -> Held {
        match self.made_of {
            MadeOf::Image { image, .. } => Held::Image { _image: image },
            MadeOf::Template { template, binding } => Held::Template { template, binding },
        }
    }
}

fn find(inner: &Inner, name: &TemplateName) -> Result<Template, HostError> {
    let found = Templates::of(&inner.store).find(name);
    found.map_err(|error| match error {
        TemplateError::NoSuchTemplate(name) => HostError::NotFound {
            what: "template",
            name: name.to_string(),
        },
        TemplateError::Path(error) => HostError::Io(error),
        other => HostError::invalid("source.template", chain(&other)),
    })
}

/// A template that is made of what there is now, built again if it was not.
fn fitting(inner: &Arc<Inner>, name: &TemplateName) -> Result<(Template, Binding), HostError> {
    let template = find(inner, name)?;
    let binding = now(inner, &template)?;
    if binding == template.record.binding {
        return Ok((template, binding));
    }
    let record = template.record.clone();
    drop(template);
    inner.renewals.renew(inner, &record, &Unfit::Files)?;
    let template = find(inner, name)?;
    let binding = now(inner, &template)?;
    if binding == template.record.binding {
        return Ok((template, binding));
    }
    let message = format!("the kernel or initrd of template {name} changes while it is built");
    Err(HostError::Late { message })
}

fn now(inner: &Inner, template: &Template) -> Result<Binding, HostError> {
    template::binding_now(&inner.store, &template.record)
        .map_err(|cause| HostError::invalid("source.template", chain(&cause)))
}
