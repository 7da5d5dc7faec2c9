//! Images on disk.
//!
//! `STORE/<digest>/` holds `image.json`, `denizen.toml`, `plugin.so`, `lib/*` and `files/**`: directories
//! 0755, files 0444 or 0555, nothing else. The digest is that of `image.json`, which lists the digest of
//! every other file.
//!
//! What must hold: a directory of that name is whole, or it is not there; an import that fails, for whatever
//! reason and at whatever instant, leaves nothing that looks like an image; and two imports of the same image
//! at once both succeed. An image is made durable before it gets its name. A sandbox may see this directory
//! read-only, and nothing in it is ever changed in place.

mod archive;
mod contents;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::elf::{self, ElfError, ElfInfo};
use crate::libraries::{self, LibraryError};
use crate::manifest::{self, Files, ManifestError};
use crate::{ImageId, Manifest};

pub(crate) use archive::pack;
use contents::{CONTENTS, MAX_CONTENTS_BYTES};
pub(crate) use contents::{Contents, FileRecord, Mode, PLUGIN, check_component, check_path};
pub(crate) use staging::{CopyError, Staging};

/// The longest manifest, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 256 << 10;

/// An image that is whole in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name.
    pub id: ImageId,
    /// Its directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Paths, below the image's directory, of the libraries to load before the plugin: dependencies first.
    pub libraries: Vec<String>,
    /// The size of its files together, in bytes.
    pub bytes: u64,
}

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportLimits {
    /// Bytes of all files together. Default 1 GiB.
    pub bytes: u64,
    /// Number of files. Default 10,000.
    pub files: usize,
}

impl Default for ImportLimits {
    fn default() -> Self {
        Self { bytes: 1 << 30, files: 10_000 }
    }
}

/// Why the store could not do it. [`StoreError::is_input`] tells whether the archive is to blame or the host.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The image is not in the store.
    #[error("there is no image {0}; `denizen image` lists those that there are")]
    UnknownImage(ImageId),
    /// The archive is not a tar archive, or it breaks off.
    #[error(
        "the image archive cannot be read: {why}; send it again, or make it anew with `denizen image build`"
    )]
    Archive {
        /// What was found.
        why: String,
    },
    /// An entry of the archive is not what an image may hold.
    #[error("the image archive is refused because of {entry:?}: {why}")]
    Refused {
        /// Its path, cut to 100 characters.
        entry: String,
        /// What is wrong with it, and what to do.
        why: &'static str,
    },
    /// The archive holds more than the limits allow.
    #[error("the image holds over {limit} {what}; make it smaller")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much of it is allowed.
        limit: String,
    },
    /// The list of contents is not one.
    #[error("image.json is refused: {why}")]
    Contents {
        /// What was found.
        why: String,
    },
    /// The manifest of the image is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The plugin or one of its libraries is of no use here.
    #[error("{file}: {source}")]
    Binary {
        /// Its path in the image.
        file: String,
        /// Why.
        source: ElfError,
    },
    /// The libraries are not complete.
    #[error(transparent)]
    Libraries(#[from] LibraryError),
    /// A file of the store is not what it was when it was written.
    #[error("{} has changed since it was stored: {why}; remove the image and deploy it again, and check the disk", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {doing}{}: {source}{}", path_text(.path), remedy(.source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: Option<PathBuf>,
        /// The refusal.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the image that was handed in is to blame, rather than the host that was to store it.
    pub fn is_input(&self) -> bool {
        !matches!(self, Self::Corrupt { .. } | Self::Io { .. })
    }

    fn refused(entry: &str, why: &'static str) -> Self {
        Self::Refused { entry: entry.chars().take(100).collect(), why }
    }
}

fn path_text(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| format!(" {}", path.display()))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make space on that disk and try again"
        }
        io::ErrorKind::PermissionDenied => "; check who owns it and who you are",
        io::ErrorKind::ReadOnlyFilesystem => "; choose a directory that can be written",
        _ => "",
    }
}

pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { doing, path: Some(path.to_owned()), source }
}

/// A directory of images. Cheap to clone; several may be open on one directory, in several programs.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

impl ImageStore {
    /// Opens the store in `dir`, which is made if it is not there, and removes what killed imports left in
    /// it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let dir = fs::canonicalize(dir).map_err(io_error("open", dir))?;
        // Sandboxes of other users look into it.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))
            .map_err(io_error("set permissions of", &dir))?;
        staging::sweep(&dir);
        Ok(Self { dir })
    }

    /// The directory, absolute. The image `id` is in the directory of that name below it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stores the image in a tar archive that may come from anyone. It is checked to the last byte: the list
    /// of contents, paths, sizes, digests, the manifest, and what the binaries say about themselves. An image
    /// that is there already is checked too, and replaced if the disk has damaged it. Blocks; reads no
    /// further than the archive's end mark.
    ///
    /// # Errors
    /// Every [`StoreError`] but [`StoreError::UnknownImage`]. Nothing is left behind then.
    pub fn import_archive(&self, archive: impl Read, limits: &ImportLimits) -> Result<Image, StoreError> {
        let staging = Staging::create(&self.dir)?;
        let (id, contents) = archive::unpack(archive, limits, &staging)?;
        check(staging.path(), &contents)?;
        self.publish(staging, &id, &contents)?;
        self.get(&id)
    }

    fn publish(&self, staging: Staging, id: &ImageId, contents: &Contents) -> Result<(), StoreError> {
        let target = self.image_dir(id);
        if target.exists() {
            match self.verify(id) {
                Ok(()) => return Ok(()),
                Err(StoreError::Corrupt { .. }) => staging::discard(&target, &self.dir)?,
                Err(other) => return Err(other),
            }
        }
        // If another import was quicker, its image is the same to the byte.
        staging.publish(&target, contents).map(drop)
    }

    /// Writes the image as a tar archive that [`ImageStore::import_archive`] takes. The bytes depend on the
    /// image only.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Corrupt`], and [`StoreError::Io`] from the store or from
    /// `out`.
    pub fn export_archive(&self, id: &ImageId, out: impl Write) -> Result<(), StoreError> {
        let contents = self.contents(id)?;
        archive::pack(&self.image_dir(id), &contents, out)
    }

    /// Finds an image. Its list of contents is checked against its name; its other files are not read, but
    /// for the manifest.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Corrupt`], [`StoreError::Io`].
    pub fn get(&self, id: &ImageId) -> Result<Image, StoreError> {
        let contents = self.contents(id)?;
        let dir = self.image_dir(id);
        let path = dir.join(manifest::FILE_NAME);
        let manifest = fs::read(&path).map_err(io_error("read", &path))?;
        let manifest = Manifest::parse_bytes(&manifest, Path::new(manifest::FILE_NAME))
            .map_err(|_| StoreError::Corrupt { path, why: "it is no manifest" })?;
        Ok(Image { id: *id, dir, manifest, bytes: contents.bytes(), libraries: contents.libraries })
    }

    /// The names of all images, damaged ones included, in their order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn ids(&self) -> Result<Vec<ImageId>, StoreError> {
        let entries = fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids: BTreeSet<ImageId> = names.filter_map(|name| name.parse().ok()).collect();
        Ok(ids.into_iter().collect())
    }

    /// All images, in the order of their names. One that is damaged or just being removed is left out; see
    /// [`ImageStore::ids`].
    ///
    /// # Errors
    /// [`StoreError::Io`] from the directory itself.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        Ok(self.ids()?.iter().filter_map(|id| self.get(id).ok()).collect())
    }

    /// Removes an image. A sandbox that runs it keeps what it has mapped and can open nothing more of it, so
    /// the caller makes sure that none does.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Io`].
    pub fn remove(&self, id: &ImageId) -> Result<(), StoreError> {
        let dir = self.image_dir(id);
        if !dir.exists() {
            return Err(StoreError::UnknownImage(*id));
        }
        staging::discard(&dir, &self.dir)
    }

    /// Reads every byte of an image and compares it with its name.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Io`], and [`StoreError::Corrupt`] for the first
    /// difference.
    pub fn verify(&self, id: &ImageId) -> Result<(), StoreError> {
        let contents = self.contents(id)?;
        let dir = self.image_dir(id);
        contents.files.iter().try_for_each(|file| verify_file(&dir, file))?;
        let listed: BTreeSet<&str> = contents.files.iter().map(|file| file.path.as_str()).collect();
        let on_disk = files_below(&dir)?;
        match on_disk.iter().find(|path| *path != CONTENTS && !listed.contains(path.as_str())) {
            Some(extra) => {
                Err(StoreError::Corrupt { path: dir.join(extra), why: "it does not belong to the image" })
            }
            None => Ok(()),
        }
    }

    fn image_dir(&self, id: &ImageId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn contents(&self, id: &ImageId) -> Result<Contents, StoreError> {
        let dir = self.image_dir(id);
        let path = dir.join(CONTENTS);
        let corrupt = |why| StoreError::Corrupt { path: path.clone(), why };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => {
                return Err(StoreError::UnknownImage(*id));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(corrupt("it is missing")),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_CONTENTS_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        if ImageId::of(&bytes) != *id {
            return Err(corrupt("its digest is not the image's name"));
        }
        let no_limits = ImportLimits { bytes: u64::MAX, files: usize::MAX };
        Contents::read(&bytes, &no_limits).map_err(|_| corrupt("it is no list of contents"))
    }
}

fn verify_file(dir: &Path, file: &FileRecord) -> Result<(), StoreError> {
    let path = dir.join(&file.path);
    let corrupt = |why| StoreError::Corrupt { path: path.clone(), why };
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(corrupt("it is missing")),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    if !metadata.is_file() || metadata.len() != file.bytes {
        return Err(corrupt("it is no plain file of that length"));
    }
    if metadata.permissions().mode() & 0o7777 != file.mode.bits() {
        return Err(corrupt("its permissions are others"));
    }
    if digest(&path)? != file.sha256.0 {
        return Err(corrupt("its content is another"));
    }
    Ok(())
}

fn digest(path: &Path) -> Result<[u8; 32], StoreError> {
    let mut file = fs::File::open(path).map_err(io_error("open", path))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).map_err(io_error("read", path))? {
            0 => return Ok(digest.finalize().into()),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Paths of everything below `dir` that is not a directory.
fn files_below(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut files = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let here = dir.join(&relative);
        for entry in fs::read_dir(&here).map_err(io_error("list", &here))? {
            let entry = entry.map_err(io_error("list", &here))?;
            let path = relative.join(entry.file_name());
            if entry.file_type().map_err(io_error("read", &here))?.is_dir() {
                pending.push(path);
            } else {
                files.push(path.to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}

/// Checks what a complete directory says: the manifest, the binaries, and that they agree with each other and
/// with the list.
pub(crate) fn check(dir: &Path, contents: &Contents) -> Result<Manifest, StoreError> {
    let manifest = read_manifest(&dir.join(manifest::FILE_NAME))?;
    if manifest.name != contents.name {
        return Err(StoreError::Contents { why: "its `name` is not the manifest's".to_owned() });
    }
    let has_files = contents.files.iter().any(|file| file.path.starts_with("files/"));
    if has_files && manifest.files == Files::None {
        return Err(StoreError::Contents {
            why: "the image holds files/, but its manifest says `files` = \"none\"; write files = \"image\""
                .to_owned(),
        });
    }
    check_binaries(dir, contents)?;
    Ok(manifest)
}

fn read_manifest(path: &Path) -> Result<Manifest, StoreError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(io_error("open", path))?;
    file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(StoreError::TooLarge {
            what: "bytes of denizen.toml",
            limit: MAX_MANIFEST_BYTES.to_string(),
        });
    }
    Ok(Manifest::parse_bytes(&bytes, Path::new(manifest::FILE_NAME))?)
}

fn check_binaries(dir: &Path, contents: &Contents) -> Result<(), StoreError> {
    let mut loads = Vec::new();
    for path in &contents.libraries {
        let info = inspect(dir, path, ElfInfo::check_library)?;
        loads.push((path.rsplit('/').next().unwrap_or(path), info.needed));
    }
    loads.push((PLUGIN, inspect(dir, PLUGIN, ElfInfo::check_plugin)?.needed));
    libraries::check_order(loads.iter().map(|(name, needed)| (*name, needed.as_slice())))?;
    Ok(())
}

fn inspect(
    dir: &Path,
    file: &str,
    check: fn(&ElfInfo) -> Result<(), ElfError>,
) -> Result<ElfInfo, StoreError> {
    let path = dir.join(file);
    let bytes = fs::read(&path).map_err(io_error("read", &path))?;
    elf::inspect(&bytes)
        .and_then(|info| check(&info).map(|()| info))
        .map_err(|source| StoreError::Binary { file: file.to_owned(), source })
}
