//! The keys in `DIR/keys`: the one that this node signs tokens with, and those that it believes.
//!
//! | file | what |
//! |---|---|
//! | `secret` | the signing key, mode 0600. A node that only verifies needs none |
//! | `public` | the ring: a public key on each line, the newest last |
//!
//! Each is replaced whole, the ring before the key that it has to know. A running node reads the ring again when it is older than a
//! moment, so a change needs no restart.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use denizen_protocol::token::{Claims, KeyId, KeyRing, KeyRingError, PublicKey, Refusal, SecretKey};

use crate::side::SideThread;

/// How old a ring may be that a token is verified with.
const FRESH: Duration = Duration::from_secs(1);
/// The same for a token whose key is not in it: it may be newer than the ring.
const VERY_FRESH: Duration = Duration::from_millis(50);
/// The most that is read of a file of keys, in bytes.
const MOST_BYTES: u64 = 64 << 10;

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// No node was started on this directory yet.
    #[error("{} has no keys yet. Remedy: start a node on this directory once, it makes them", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read or written.
    #[error("{} cannot be used: {source}. Remedy: it must belong to the user that runs the node", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file has something else in it.
    #[error("{}: {why}. Remedy: correct the file, or move the folder away and start the node for new keys", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: KeyRingError,
    },
    /// The ring takes no further key.
    #[error("no key can be added: {0}. Remedy: revoke the older keys (`denizen token rotate --revoke`)")]
    Ring(KeyRingError),
    /// No token can say this.
    #[error("no token can be issued: {0}")]
    Claims(Refusal),
}

/// The keys of a node's directory.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    /// The keys of a directory that a node was started on.
    ///
    /// # Errors
    /// [`KeysError::Missing`].
    pub fn open(dir: &Path) -> Result<Keys, KeysError> {
        let keys = Keys { folder: dir.join("keys") };
        if keys.public().exists() { Ok(keys) } else { Err(KeysError::Missing(keys.folder)) }
    }

    /// The same, and makes them where there are none.
    ///
    /// # Errors
    /// [`KeysError::File`].
    pub(crate) fn open_or_make(dir: &Path) -> Result<Keys, KeysError> {
        let keys = Keys { folder: dir.join("keys") };
        if !keys.public().exists() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&keys.folder);
            made.map_err(unusable(&keys.folder))?;
            keys.put_first(&KeyRing::new())?;
        }
        Ok(keys)
    }

    /// The keys that are believed, the newest last.
    ///
    /// # Errors
    /// [`KeysError::File`], [`KeysError::Content`].
    pub fn ring(&self) -> Result<KeyRing, KeysError> {
        let path = self.public();
        let text = read(&path)?;
        let mut ring = KeyRing::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let added = PublicKey::from_text(line).and_then(|key| ring.add(key));
            added.map_err(|why| KeysError::Content { path: path.clone(), why })?;
        }
        Ok(ring)
    }

    /// The key that tokens are signed with.
    ///
    /// # Errors
    /// [`KeysError::File`], [`KeysError::Content`].
    pub fn signing(&self) -> Result<SecretKey, KeysError> {
        let path = self.secret();
        SecretKey::from_secret_text(&read(&path)?).map_err(|why| KeysError::Content { path, why })
    }

    /// Signs a token, and gives its binary form.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn issue(&self, claims: &Claims) -> Result<Vec<u8>, KeysError> {
        self.signing()?.issue(claims).map_err(KeysError::Claims)
    }

    /// Signs with a new key from now on. Tokens of the older keys hold until they expire, or, with `revoke`, no longer for new
    /// connections. Gives the new key's id.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn rotate(&self, revoke: bool) -> Result<KeyId, KeysError> {
        let ring = if revoke { KeyRing::new() } else { self.ring()? };
        self.put_first(&ring)
    }

    /// Makes a key, adds it to `ring` and signs with it.
    fn put_first(&self, ring: &KeyRing) -> Result<KeyId, KeysError> {
        let mut seed = [0; 32];
        let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut seed));
        random.map_err(unusable(Path::new("/dev/urandom")))?;
        let secret = SecretKey::from_random(&seed);
        seed.fill(0);
        let mut ring = ring.clone();
        ring.add(secret.public()).map_err(KeysError::Ring)?;
        // At the first start the ring is what says that there are keys; later, a key that the ring lacks would sign for nobody.
        let first = !self.public().exists();
        if first {
            self.write(&self.secret(), &secret.to_secret_text())?;
        }
        let lines: Vec<_> = ring.keys().iter().map(ToString::to_string).collect();
        self.write(&self.public(), &lines.join("\n"))?;
        if !first {
            self.write(&self.secret(), &secret.to_secret_text())?;
        }
        Ok(secret.public().id())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), KeysError> {
        let new = path.with_extension("new");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            writeln!(file, "{text}")?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(unusable(path))
    }

    fn secret(&self) -> PathBuf {
        self.folder.join("secret")
    }

    fn public(&self) -> PathBuf {
        self.folder.join("public")
    }
}

fn read(path: &Path) -> Result<String, KeysError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    read.map_err(unusable(path))?;
    Ok(text)
}

fn unusable(path: &Path) -> impl Fn(io::Error) -> KeysError + use<> {
    let path = path.to_owned();
    move |source| KeysError::File { path: path.clone(), source }
}

/// What a running node believes.
#[derive(Debug)]
pub(crate) struct Believed {
    keys: Keys,
    ring: Mutex<(Arc<KeyRing>, Instant)>,
}

impl Believed {
    /// # Errors
    /// [`KeysError`].
    pub(crate) fn open(dir: &Path) -> Result<Believed, KeysError> {
        let keys = Keys::open_or_make(dir)?;
        let ring = Mutex::new((Arc::new(keys.ring()?), Instant::now()));
        Ok(Believed { keys, ring })
    }

    /// Verifies a token; `reading` reads the keys where they may have changed.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn verify(&self, token: &[u8], reading: &SideThread) -> Result<Claims, Refusal> {
        // A form that cannot be needs no keys.
        denizen_protocol::token::key_id(token)?;
        match self.fresh(FRESH, reading).await.verify(token, now_s()) {
            Err(Refusal::UnknownKey(_)) => self.fresh(VERY_FRESH, reading).await.verify(token, now_s()),
            verified => verified,
        }
    }

    async fn fresh(&self, age: Duration, reading: &SideThread) -> Arc<KeyRing> {
        let (ring, read) = self.now();
        if read.elapsed() < age {
            return ring;
        }
        let keys = self.keys.clone();
        match reading.run(move || keys.ring()).await {
            Ok(Ok(ring)) => {
                let ring = Arc::new(ring);
                *self.ring.lock().unwrap_or_else(PoisonError::into_inner) =
                    (Arc::clone(&ring), Instant::now());
                ring
            }
            Ok(Err(error)) => {
                tracing::warn!("the keys that were read last stay in force: {error}");
                ring
            }
            Err(_) => ring,
        }
    }

    fn now(&self) -> (Arc<KeyRing>, Instant) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&ring.0), ring.1)
    }
}

/// Seconds of Unix time.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long until a second of Unix time begins.
pub(super) fn until(second: u64) -> Duration {
    until_time(Duration::from_secs(second))
}

/// How long until some time after the beginning of 1970.
pub(super) fn until_time(since_1970: Duration) -> Duration {
    let then = UNIX_EPOCH.checked_add(since_1970);
    then.map_or(Duration::MAX, |then| then.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use futures_lite::future::block_on;

    use super::*;

    fn claims() -> Claims {
        let now = now_s();
        let (not_before_s, expires_s) = (now - 1, now + 100);
        Claims { app: "a".to_owned(), process: None, functions: None, not_before_s, expires_s }
    }

    #[test]
    fn keys_are_made_once_and_the_secret_is_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Keys::open(dir.path()), Err(KeysError::Missing(_))));
        let id = Keys::open_or_make(dir.path()).unwrap().signing().unwrap().public().id();
        let again = Keys::open_or_make(dir.path()).unwrap();
        assert_eq!(again.signing().unwrap().public().id(), id, "a second start keeps them");
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(again.secret()), 0o600);
        assert_eq!(mode(again.folder.clone()), 0o700);
    }

    #[test]
    fn a_rotation_is_believed_at_once_and_a_revocation_before_long() {
        let dir = tempfile::tempdir().unwrap();
        let believed = Believed::open(dir.path()).unwrap();
        let reading = SideThread::start("reading").unwrap();
        let verify = |token: &[u8]| block_on(believed.verify(token, &reading));
        let keys = Keys::open(dir.path()).unwrap();
        let old = keys.issue(&claims()).unwrap();
        assert_eq!(verify(&old), Ok(claims()));
        keys.rotate(false).unwrap();
        let new = keys.issue(&claims()).unwrap();
        std::thread::sleep(VERY_FRESH);
        assert_eq!(verify(&new), Ok(claims()));
        assert_eq!(verify(&old), Ok(claims()), "until it expires");
        keys.rotate(true).unwrap();
        std::thread::sleep(FRESH);
        assert!(matches!(verify(&old), Err(Refusal::UnknownKey(_))));
        assert!(matches!(verify(&new), Err(Refusal::UnknownKey(_))));
        assert_eq!(verify(&[]), Err(Refusal::Missing));
    }

    #[test]
    fn a_ring_with_something_else_in_it_is_named_and_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let believed = Believed::open(dir.path()).unwrap();
        let reading = SideThread::start("reading").unwrap();
        let token = Keys::open(dir.path()).unwrap().issue(&claims()).unwrap();
        std::fs::write(dir.path().join("keys/public"), "dzp1_nonsense\n").unwrap();
        assert!(matches!(Keys::open(dir.path()).unwrap().ring(), Err(KeysError::Content { .. })));
        std::thread::sleep(FRESH);
        assert!(block_on(believed.verify(&token, &reading)).is_ok());
    }
}
