//! `rundlet template build`: a cold boot, perhaps a warm-up, the capture, and a clone of it as a trial.
//!
//! Everything happens in a work directory of the store, which goes with this process if it does not
//! come to the end; the template appears complete, by rename.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::store::SCRATCH;
use super::{
    Binding, Recipe, Record, Template, TemplateError, TemplateName, Templates, WarmUp, trial,
    warm_up,
};
use crate::claim;
use crate::digest;
use crate::error::PathError;
use crate::image::{Image, Store};
use crate::places::{self, PlaceError};
use crate::run::watch::{News, Watch, Wire};
use crate::run::{Cause, Machine, Place, RunError, signals};
use crate::sandbox::{Boot, Console, Event, Origin, SandboxSpec, Tail};
use crate::scratch;
use indicatif::ProgressBar;

/// For the guest to stop its programs and write its disk.
const PREPARE: Duration = Duration::from_secs(60);

/// For the VMM to write guest memory: large ones on slow disks take their time.
const CAPTURE: Duration = Duration::from_secs(600);

/// For the block backend to write the scratch disk.
const KEEP: Duration = Duration::from_secs(300);

/// Lines of a failed warm-up that the error shows.
const WARM_UP_LINES: usize = 20;

/// A template to build.
#[derive(Debug)]
pub struct Request {
    pub name: TemplateName,
    pub machine: Machine,
    pub warm_up: Option<WarmUp>,
    pub boot_timeout: Duration,
}

/// Builds it and puts it under its name.
///
/// # Errors
/// Something failed, the warm-up perhaps; nothing is left of it, and what had the name still has it.
pub fn build(request: &Request) -> Result<Record, RunError> {
    let store = Store::open(&places::store()).map_err(Cause::Store)?;
    build_with(&Wire::open()?, store, request)
}

/// The same in a store of the caller's, whose signals are its own affair.
///
/// # Errors
/// As [`build()`].
pub fn build_in(store: &Store, request: &Request) -> Result<Record, RunError> {
    build_with(&Wire::without_signals(), store.clone(), request)
}

fn build_with(wire: &Wire, store: Store, request: &Request) -> Result<Record, RunError> {
    let runtime = places::runtime().map_err(Cause::Place)?;
    let place = Place { store, runtime };
    let machine = &request.machine;
    let image = place.store.find(&machine.image).map_err(Cause::Store)?;
    let recipe = Recipe {
        image: machine.image.clone(),
        memory_mib: machine.memory_mib,
        vcpus: machine.vcpus,
        scratch_mib: machine.scratch_mib,
        kernel: machine.kernel.as_deref().map(absolute).transpose()?,
        initrd: machine.initrd.as_deref().map(absolute).transpose()?,
        warm_up: request.warm_up.clone(),
        boot_timeout_s: request.boot_timeout.as_secs(),
    };
    let result = make(&place, wire, &request.name, recipe, image);
    if let Err(error) = claim::sweep(&place.runtime) {
        log::warn!("{}", crate::error::chain(&error));
    }
    result
}

/// Makes something of a template. One that no longer fits is built again, once, saying so.
///
/// # Errors
/// Those of `attempt`; [`Cause::Unfit`] if a new template does not fit either.
pub(crate) fn with_fitting<T>(
    place: &Place,
    wire: &Wire,
    name: &TemplateName,
    mut attempt: impl FnMut(Template) -> Result<T, RunError>,
) -> Result<T, RunError> {
    let templates = Templates::of(&place.store);
    let template = templates.find(name).map_err(Cause::Template)?;
    let record = template.record.clone();
    match attempt(template) {
        Err(error) if error.is_template_unfit() => {
            eprintln!("rundlet: template {name} is built again: {error}");
            rebuild(place, wire, &record)?;
        }
        other => return other,
    }
    let template = templates.find(name).map_err(Cause::Template)?;
    attempt(template).map_err(|error| RunError {
        cause: match error.cause {
            cause @ Cause::TemplateUnfit(_) => still_unfit(name, cause),
            cause => cause,
        },
        evidence: error.evidence,
    })
}

/// To build it once more would not help.
pub(super) fn still_unfit(name: &TemplateName, cause: Cause) -> Cause {
    Cause::Unfit {
        name: name.clone(),
        source: Box::new(cause),
    }
}

/// The same for somebody whose signals are his own affair; the template that has the name now.
pub(crate) fn renew_in(store: &Store, unfit: &Record) -> Result<Record, RunError> {
    let runtime = places::runtime().map_err(Cause::Place)?;
    let store = store.clone();
    let place = Place { store, runtime };
    rebuild(&place, &Wire::without_signals(), unfit)?;
    let found = Templates::of(&place.store).find(&unfit.name);
    Ok(found.map_err(Cause::Template)?.record)
}

/// Builds it again unless somebody else has done so meanwhile. It gets the image it had, whatever that is
/// called now.
fn rebuild(place: &Place, wire: &Wire, unfit: &Record) -> Result<(), RunError> {
    let templates = Templates::of(&place.store);
    let _one_at_a_time = templates.rebuild_lock().map_err(Cause::Template)?;
    // Unlocked at once, so that it can be removed when it is replaced.
    let Template { record, image, .. } = templates.find(&unfit.name).map_err(Cause::Template)?;
    if record.id == unfit.id {
        make(place, wire, &unfit.name, record.recipe, image)?;
    }
    Ok(())
}

fn make(
    place: &Place,
    wire: &Wire,
    name: &TemplateName,
    recipe: Recipe,
    image: Image,
) -> Result<Record, RunError> {
    let store = &place.store;
    let templates = Templates::of(store);
    let work = templates.work().map_err(Cause::Template)?;
    let staged = work.path().join("template");
    fs::create_dir(&staged)
        .map_err(PathError::at("create directory", &staged))
        .map_err(Cause::Path)?;
    let (kernel, initrd) = guest_files(&recipe.kernel, &recipe.initrd)?;
    let binding = binding(store, &kernel, &initrd, &image.digest)?;
    let boot = Boot {
        memory_mib: recipe.memory_mib,
        vcpus: recipe.vcpus,
        kernel,
        initrd,
        image,
        scratch: scratch::template(store, recipe.scratch_mib).map_err(Cause::Scratch)?,
        keep: Some(staged.join(SCRATCH)),
        verbose: log::log_enabled!(log::Level::Debug),
    };
    let spec = SandboxSpec {
        id: claim::random_hex().map_err(Cause::Random)?,
        console: Console::Internal,
        origin: Origin::Boot(Box::new(boot.check().map_err(Cause::Spec)?)),
    };
    let record = Record {
        name: name.clone(),
        id: spec.id.clone(),
        vmm: digest::of_file(
            store,
            &places::program("rundlet-vmm").map_err(Cause::Place)?,
        )
        .map_err(Cause::Path)?,
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        recipe,
        binding,
    };
    let builder = Builder {
        watch: Watch::start(wire, &spec, &place.runtime, Instant::now())?,
        record: &record,
        staged: &staged,
        said: Tail::default(),
        progress: spinner(),
    };
    builder.run()?;
    let template = templates
        .staged(&staged, &record)
        .map_err(Cause::Template)?;
    trial::run(place, wire, template)?;
    templates
        .publish(&staged, &record)
        .map_err(Cause::Template)?;
    Ok(record)
}

/// A template in the making.
struct Builder<'a> {
    watch: Watch<'a>,
    record: &'a Record,
    staged: &'a Path,
    /// The warm-up's last lines.
    said: Tail,
    progress: ProgressBar,
}

impl Builder<'_> {
    fn run(mut self) -> Result<(), RunError> {
        let outcome = self.steps();
        self.progress.finish_and_clear();
        outcome.map_err(|cause| {
            let warm_up = matches!(cause, Cause::WarmUp { .. } | Cause::WarmUpTimeout(_));
            let mut error = self.watch.fail(cause);
            if warm_up {
                error.evidence.warm_up = self.said.last(WARM_UP_LINES);
            }
            error
        })
        // Dropped here, which takes the sandbox down.
    }

    fn steps(&mut self) -> Result<(), Cause> {
        let recipe = &self.record.recipe;
        self.progress.set_message("booting");
        let limit = Duration::from_secs(recipe.boot_timeout_s);
        if let Some(signal) = self.watch.until_ready(limit)? {
            return Err(Cause::Interrupted(signal));
        }
        if let Some(warm_up) = &recipe.warm_up {
            self.progress.set_message("warming up");
            warm_up::run(&mut self.watch, warm_up, &self.said)?;
        }
        self.progress.set_message("capturing");
        self.watch
            .sandbox
            .prepare(Instant::now() + PREPARE)
            .map_err(Cause::Prepare)?;
        let captured = self
            .watch
            .sandbox
            .capture(self.staged, &self.record.binding, CAPTURE)?;
        log::info!("captured: {captured:?}");
        self.watch.sandbox.end_vmm();
        self.until_kept()?;
        self.record
            .write(self.staged)
            .map_err(TemplateError::Record)?;
        Ok(())
    }

    /// The VMM has ended as it should; the backend keeps the disk.
    fn until_kept(&mut self) -> Result<(), Cause> {
        let deadline = Instant::now() + KEEP;
        loop {
            match self.watch.next(Some(deadline)) {
                None => return Err(Cause::KeptTimeout(KEEP)),
                Some(News::Sandbox(Event::Kept)) => return Ok(()),
                Some(News::Sandbox(Event::VmmEnded(_))) => {}
                Some(News::Sandbox(event)) => self.watch.event(event)?,
                Some(News::Signal(signal)) if signals::asks_for_an_end(signal) => {
                    return Err(Cause::Interrupted(signal));
                }
                Some(_) => {}
            }
        }
    }
}

/// Kernel and initrd: those of a recipe, or the usual ones.
pub(crate) fn guest_files(
    kernel: &Option<PathBuf>,
    initrd: &Option<PathBuf>,
) -> Result<(PathBuf, PathBuf), Cause> {
    let file = |told: &Option<PathBuf>, name| match told {
        Some(path) => Ok(path.clone()),
        None => places::guest(name),
    };
    let find = || -> Result<_, PlaceError> {
        Ok((file(kernel, "vmlinux")?, file(initrd, "initrd.cpio")?))
    };
    find().map_err(Cause::Place)
}

/// What the template of a record would be made of if it were built now.
pub(crate) fn binding_now(store: &Store, record: &Record) -> Result<Binding, Cause> {
    let (kernel, initrd) = guest_files(&record.recipe.kernel, &record.recipe.initrd)?;
    binding(store, &kernel, &initrd, &record.binding.image)
}

fn binding(store: &Store, kernel: &Path, initrd: &Path, image: &str) -> Result<Binding, Cause> {
    Ok(Binding {
        kernel: digest::of_file(store, kernel)?,
        initrd: digest::of_file(store, initrd)?,
        image: image.into(),
    })
}

/// The recipe may be followed again from elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Cause> {
    Ok(path.canonicalize().map_err(PathError::at("find", path))?)
}

/// Drawn on stderr when that is a terminal, and nowhere else.
fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
