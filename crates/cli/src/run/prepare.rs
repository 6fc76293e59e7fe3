//! From what is to be run, as it is written, to a function with its files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tierce_image::{Image, ReadError};
use tierce_oci::{Digest, Platform};
use tierce_runner::function::Function;
use tierce_runner::rootfs::{Form, MountKind, MountPoint, Root};

use crate::arguments::{BuildArguments, RegistryArguments};
use crate::commands::build::build_and_take;
use crate::diagnostic::{Hinted as _, UsageError, find};
use crate::environment::Environment;
use crate::output::Output;
use crate::places::{Places, PlacesSettings, processors};
use crate::plan::BuildPlan;
use crate::run::arguments::{FunctionArguments, RunSource};
use crate::run::function::Surroundings;
use crate::run::platform;
use crate::run::root::{RootSettings, unpack};
use crate::source::SourceError;
use crate::transport::{ImagePlace, PushSource};

/// What can run.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The image's.
    pub(crate) digest: Digest,
    pub(crate) function: Arc<Function>,
    pub(crate) root: Arc<Root>,
}

/// What is to be run, once it is known whether it is a folder or an image.
#[derive(Debug)]
pub(crate) enum Subject {
    Context(PathBuf),
    Image(PushSource),
}

impl Subject {
    /// Settles what `source` means, and says so where it could mean two things.
    pub(crate) fn of(source: &RunSource, output: Output) -> Result<Self> {
        let has_file = |folder: &Path| folder.join("tierce.toml").is_file();
        match source {
            RunSource::Context(folder) if has_file(folder) => Ok(Self::Context(folder.clone())),
            RunSource::Context(folder) => {
                let shown = folder.display();
                Err(UsageError(format!("there is no tierce.toml in `{shown}`"))).hint(
                    "`tierce init` writes one; an image is named as elsewhere: HOST/REPO:TAG, \
                     store:NAME, oci:DIR, oci-archive:FILE or docker-archive:FILE",
                )
            }
            RunSource::Either(folder, _) if has_file(folder) => {
                let shown = folder.display();
                output.step(&format!(
                    "`{shown}` is the folder here; `store:{shown}` or `docker://{shown}` would be an image"
                ));
                Ok(Self::Context(folder.clone()))
            }
            RunSource::Either(folder, image) => {
                if folder.is_dir() {
                    let shown = folder.display();
                    output.note(&format!(
                        "the folder `{shown}` has no tierce.toml, so `{shown}` is taken for an image; \
                         `tierce init {shown}` writes one"
                    ));
                }
                Ok(Self::Image(image.clone()))
            }
            RunSource::Image(image) => Ok(Self::Image(image.clone())),
        }
    }
}

/// How a function is prepared, each time.
pub(crate) struct Preparation<'a> {
    pub(crate) arguments: &'a FunctionArguments,
    pub(crate) registry: &'a RegistryArguments,
    pub(crate) surroundings: &'a Surroundings,
    pub(crate) environment: &'a Environment,
    /// Whether the root must be one directory.
    pub(crate) wants_one_directory: bool,
}

impl Preparation<'_> {
    /// Builds or finds the image, and makes its root filesystem.
    ///
    /// What is dropped half-way leaves nothing but layers that are unpacked whole.
    pub(crate) async fn prepare(&self, subject: &Subject, output: Output) -> Result<Prepared> {
        let mut places = Places::open(
            &PlacesSettings {
                registry: self.registry,
                create_repository: false,
                offline: self.arguments.offline,
                remembers: true,
                compress_jobs: processors(),
            },
            self.environment,
            output,
        )?;
        let prepared = match subject {
            Subject::Context(context) => {
                let plan = self.plan(context)?;
                let take = async |image: &Image| self.take(image, &places, output).await;
                build_and_take(&plan, &places, self.environment, output, take).await
            }
            Subject::Image(source) => self.find(source, &places, output).await,
        }?;
        places.make_room(self.environment.cache_limit);
        Ok(prepared)
    }

    /// What is built in `context`: the one image for this machine.
    pub(crate) fn plan(&self, context: &Path) -> Result<BuildPlan> {
        let arguments =
            BuildArguments::of_context(context, self.arguments.offline, self.registry.clone());
        let mut plan = BuildPlan::resolve(&arguments, self.environment)?;
        let wanted = wanted_platform(self.arguments.platform.as_ref(), &plan.platforms);
        // Before anything is made for nothing.
        platform::check(&wanted)?;
        plan.platforms = vec![wanted];
        plan.index = false;
        Ok(plan)
    }

    /// Finds an image, reads it and makes its root.
    async fn find(&self, source: &PushSource, places: &Places, output: Output) -> Result<Prepared> {
        let place = places.find(source).await?;
        let image = match self.read(&place, places).await {
            Err(error) if matches!(find(&error), Some(SourceError::Offline(_))) => {
                return Err(UsageError(format!(
                    "--offline forbids to ask for `{place}`"
                )))
                .hint("bring it here before: `tierce pull`");
            }
            read => read.with_context(|| format!("could not read `{place}`"))?,
        };
        self.take(&image, places, output)
            .await
            .with_context(|| format!("could not run `{place}`"))
    }

    async fn read(&self, place: &ImagePlace, places: &Places) -> Result<Image> {
        if let Some(platform) = &self.arguments.platform {
            return places.read_image(place, None, Some(platform)).await;
        }
        let native = platform::native();
        match places.read_image(place, None, Some(&native)).await {
            // There is one alone: whether it can run is asked of it.
            Err(error) if matches!(find(&error), Some(ReadError::OtherPlatform { .. })) => {
                places.read_image(place, None, None).await
            }
            read => read,
        }
    }

    async fn take(&self, image: &Image, places: &Places, output: Output) -> Result<Prepared> {
        platform::check(image.platform())?;
        // What cannot start is told before anything is unpacked.
        let function = self
            .surroundings
            .function(image.config(), self.arguments, Vec::new())?;
        let settings = self.root_settings();
        let (root, extensions) = unpack(image, places, self.environment, &settings, output).await?;
        let function = Function {
            extensions,
            ..function
        };
        Ok(Prepared {
            digest: image.digest(),
            function: Arc::new(function),
            root: Arc::new(root),
        })
    }

    fn root_settings(&self) -> RootSettings {
        let volumes = self.arguments.volume.iter();
        let mount_points = volumes.map(|volume| MountPoint {
            path: volume.target.clone(),
            kind: if volume.source.is_dir() {
                MountKind::Directory
            } else {
                MountKind::File
            },
        });
        RootSettings {
            form: if self.arguments.keep_modes {
                Form::AsPacked
            } else if self.arguments.writable {
                Form::Writable
            } else {
                Form::Lambda
            },
            mount_points: mount_points.collect(),
            is_flat: self.wants_one_directory,
        }
    }
}

/// The platform to build for: the one that is asked for, else this machine's if it is among those
/// of the project, else the project's first.
fn wanted_platform(asked: Option<&Platform>, of_project: &[Platform]) -> Platform {
    let native = platform::native();
    match (asked, of_project) {
        (Some(asked), _) => asked.clone(),
        (None, [first, ..]) if !of_project.contains(&native) => first.clone(),
        (None, _) => native,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_built_for_this_machine_where_it_can_be() {
        let native = platform::native();
        let other = Platform::linux("s390x");
        for (asked, of_project, expected) in [
            (None, vec![], &native),
            (None, vec![other.clone(), native.clone()], &native),
            (None, vec![other.clone()], &other),
            (Some(&other), vec![native.clone()], &other),
        ] {
            assert_eq!(wanted_platform(asked, &of_project), *expected);
        }
    }
}
