//! Keys: one that signs, and the ring of those that are believed.
//!
//! A key is named by the first eight bytes of its public half, so that nobody has to give out numbers. To rotate keys,
//! add the new one to every ring, sign with it, and remove the old one when its last token has expired.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use super::prefixed;
use crate::limits::MAX_KEYS;

/// Bytes of a [`KeyId`].
pub const KEY_ID_LEN: usize = 8;
const KEY_LEN: usize = 32;
const PUBLIC_PREFIX: &str = "dzp1_";
/// Apart from the other prefixes, so that a secret that leaked into a log or a repository can be searched for.
const SECRET_PREFIX: &str = "dzs1_";

/// The first bytes of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; KEY_ID_LEN]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Signs tokens. Wiped from memory when dropped; `Debug` shows its id only.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key from 32 bytes that nobody can guess: of the kernel's generator, for instance.
    pub fn from_random(seed: &[u8; KEY_LEN]) -> SecretKey {
        SecretKey(SigningKey::from_bytes(seed))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The text form, `dzs1_...`: keep it secret.
    pub fn to_secret_text(&self) -> String {
        prefixed(SECRET_PREFIX, self.0.as_bytes())
    }

    /// From the text form; blanks around it do not matter.
    ///
    /// # Errors
    /// [`KeyRingError::NotAKey`].
    pub fn from_secret_text(text: &str) -> Result<SecretKey, KeyRingError> {
        let bytes = key_bytes(text, SECRET_PREFIX).ok_or(KeyRingError::NotAKey(SECRET_PREFIX))?;
        Ok(SecretKey::from_random(&bytes))
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

/// Verifies tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// What tokens name it by.
    pub fn id(&self) -> KeyId {
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&self.0.as_bytes()[..KEY_ID_LEN]);
        KeyId(id)
    }

    /// From the text form, `dzp1_...`; blanks around it do not matter.
    ///
    /// # Errors
    /// [`KeyRingError::NotAKey`], also for a point that signs anything.
    pub fn from_text(text: &str) -> Result<PublicKey, KeyRingError> {
        let key = key_bytes(text, PUBLIC_PREFIX)
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .filter(|key| !key.is_weak());
        key.map(PublicKey).ok_or(KeyRingError::NotAKey(PUBLIC_PREFIX))
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        // The strict rules of RFC 8032, so that every verifier agrees on every token.
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

/// The text form.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&prefixed(PUBLIC_PREFIX, self.0.as_bytes()))
    }
}

/// Why a key is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyRingError {
    /// The text is no key.
    #[error("this is not a key: one begins with {0} and 43 letters of URL-safe base64 follow")]
    NotAKey(&'static str),
    /// As many as may be.
    #[error("the ring holds {MAX_KEYS} keys: remove those whose tokens have expired")]
    Full,
    /// Another key begins with the same bytes.
    #[error("another key has the id {0}: generate a new one")]
    SameId(KeyId),
}

/// The public keys that are believed. At most [`MAX_KEYS`].
#[derive(Debug, Clone, Default)]
pub struct KeyRing {
    keys: Vec<PublicKey>,
}

impl KeyRing {
    /// A ring that believes nobody.
    pub fn new() -> KeyRing {
        KeyRing::default()
    }

    /// Believes one more key. One that is there already changes nothing.
    ///
    /// # Errors
    /// [`KeyRingError::Full`], [`KeyRingError::SameId`].
    pub fn add(&mut self, key: PublicKey) -> Result<(), KeyRingError> {
        match self.get(key.id()) {
            Some(there) if *there == key => return Ok(()),
            Some(_) => return Err(KeyRingError::SameId(key.id())),
            None if self.keys.len() >= MAX_KEYS => return Err(KeyRingError::Full),
            None => {}
        }
        self.keys.push(key);
        Ok(())
    }

    /// Believes a key no longer. Says whether it was there.
    pub fn remove(&mut self, id: KeyId) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| key.id() != id);
        self.keys.len() < before
    }

    /// The key with this id.
    pub fn get(&self, id: KeyId) -> Option<&PublicKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    /// All keys, in the order in which they were added.
    pub fn keys(&self) -> &[PublicKey] {
        &self.keys
    }
}

fn key_bytes(text: &str, prefix: &str) -> Option<[u8; KEY_LEN]> {
    let body = text.trim().strip_prefix(prefix).filter(|body| body.len() == 43)?;
    BASE64_URL_SAFE_NO_PAD.decode(body).ok()?.try_into().ok()
}
