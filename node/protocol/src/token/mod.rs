//! Tokens: who may call what, signed once and verified anywhere without asking anybody.
//!
//! A token is Ed25519-signed (RFC 8032) and says which application, process and functions its bearer may call, and when.
//! It is verified against a [`KeyRing`] of public keys. What must hold: nothing in a token is believed before its
//! signature is verified, and every refusal has a name.
//!
//! Binary form, little-endian: version `u8` = 1 | key id, 8 bytes | not before, `u64` | expires, `u64` (seconds of Unix
//! time) | application, process (each a length byte and the name; an empty process is any) | number of functions `u8` (0
//! is any) and their names, sorted | signature, 64 bytes, over [`DOMAIN`] and everything before it. The text form is
//! [`TOKEN_PREFIX`] and URL-safe base64 without padding.

mod keys;

pub use keys::{KEY_ID_LEN, KeyId, KeyRing, KeyRingError, PublicKey, SecretKey};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::limits::{MAX_TOKEN, MAX_TOKEN_FUNCTIONS};
use crate::text;

/// What text forms of tokens begin with.
pub const TOKEN_PREFIX: &str = "dzt1_";
/// Signed in front of a token, so that a signature made for something else is none of a token.
pub const DOMAIN: &[u8] = b"denizen token v1\0";
const VERSION: u8 = 1;
const SIGNATURE_LEN: usize = 64;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The application.
    pub app: String,
    /// The one process, or any.
    pub process: Option<String>,
    /// The functions, or any. 1 to [`MAX_TOKEN_FUNCTIONS`], in any order.
    pub functions: Option<Vec<String>>,
    /// The first second of Unix time in which it holds.
    pub not_before_s: u64,
    /// The first second of Unix time in which it does not hold any more.
    pub expires_s: u64,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is none.
    #[error("no token was sent: put one into the HELLO")]
    Missing,
    /// It does not have the form of a token.
    #[error("this is not a token: {0}")]
    Malformed(&'static str),
    /// It has a form of the future.
    #[error("the token is of version {0}, this node reads version 1")]
    Version(u8),
    /// No key of this id is in the ring.
    #[error(
        "the token is signed with the key {0}, which this node does not know (any more): ask for a new token"
    )]
    UnknownKey(KeyId),
    /// The signature is not of the key over these bytes.
    #[error("the signature of the token is wrong: it was made up or changed")]
    BadSignature,
    /// It holds later.
    #[error("the token holds in {in_s} s: wait, or set the clocks")]
    NotYet {
        /// Seconds until then.
        in_s: u64,
    },
    /// It does not hold any more.
    #[error("the token expired {since_s} s ago: ask for a new one")]
    Expired {
        /// Seconds since then.
        since_s: u64,
    },
    /// It is for another application.
    #[error("the token is for another application")]
    WrongApp,
    /// It is for another process.
    #[error("the token is for another process")]
    WrongProcess,
    /// It is for other functions.
    #[error("the token does not cover this function")]
    WrongFunction,
}

impl Refusal {
    /// Every name, in the order of the document.
    pub const NAMES: [&str; 10] = [
        "token-missing",
        "token-malformed",
        "token-version",
        "token-unknown-key",
        "token-bad-signature",
        "token-not-yet",
        "token-expired",
        "token-wrong-app",
        "token-wrong-process",
        "token-wrong-function",
    ];

    /// The stable name: the `cause` of a `bad-token` or `not-permitted` problem.
    pub const fn name(&self) -> &'static str {
        Refusal::NAMES[match self {
            Refusal::Missing => 0,
            Refusal::Malformed(_) => 1,
            Refusal::Version(_) => 2,
            Refusal::UnknownKey(_) => 3,
            Refusal::BadSignature => 4,
            Refusal::NotYet { .. } => 5,
            Refusal::Expired { .. } => 6,
            Refusal::WrongApp => 7,
            Refusal::WrongProcess => 8,
            Refusal::WrongFunction => 9,
        }]
    }
}

/// The problem that refuses a HELLO or a call.
impl From<&Refusal> for crate::Problem {
    fn from(refusal: &Refusal) -> crate::Problem {
        use crate::problem::{BAD_TOKEN, NOT_PERMITTED};
        let kind = match refusal {
            Refusal::WrongApp | Refusal::WrongProcess | Refusal::WrongFunction => NOT_PERMITTED,
            _ => BAD_TOKEN,
        };
        let mut problem = crate::Problem::new(kind, crate::Blame::Caller, crate::Retry::Never);
        problem.detail = Some(refusal.to_string());
        problem.cause = Some(refusal.name().to_owned());
        problem
    }
}

impl Claims {
    /// Whether the bearer may call this application.
    ///
    /// # Errors
    /// [`Refusal::WrongApp`].
    pub fn permit_app(&self, app: &str) -> Result<(), Refusal> {
        if self.app == app { Ok(()) } else { Err(Refusal::WrongApp) }
    }

    /// Whether the bearer may call this process of its application.
    ///
    /// # Errors
    /// [`Refusal::WrongProcess`].
    pub fn permit_process(&self, process: &str) -> Result<(), Refusal> {
        let fits = self.process.as_deref().is_none_or(|bound| bound == process);
        if fits { Ok(()) } else { Err(Refusal::WrongProcess) }
    }

    /// Whether the bearer may call this function.
    ///
    /// # Errors
    /// [`Refusal::WrongFunction`].
    pub fn permit_function(&self, function: &str) -> Result<(), Refusal> {
        let fits = self.functions.as_ref().is_none_or(|names| names.iter().any(|name| name == function));
        if fits { Ok(()) } else { Err(Refusal::WrongFunction) }
    }

    /// Whether it holds at `now_s`, in seconds of Unix time. There is no leeway: issue tokens that began a minute ago.
    ///
    /// # Errors
    /// [`Refusal::NotYet`], [`Refusal::Expired`].
    pub fn permit_time(&self, now_s: u64) -> Result<(), Refusal> {
        if now_s < self.not_before_s {
            return Err(Refusal::NotYet { in_s: self.not_before_s - now_s });
        }
        if now_s >= self.expires_s {
            return Err(Refusal::Expired { since_s: now_s - self.expires_s });
        }
        Ok(())
    }

    fn encode(&self, key: KeyId) -> Result<Vec<u8>, Refusal> {
        let mut functions: Vec<&str> = self.functions.iter().flatten().map(String::as_str).collect();
        functions.sort_unstable();
        functions.dedup();
        if self.functions.is_some() && functions.is_empty() {
            return Err(Refusal::Malformed("it permits no function at all"));
        }
        let count =
            u8::try_from(functions.len()).ok().filter(|count| usize::from(*count) <= MAX_TOKEN_FUNCTIONS);
        let count = count.ok_or(Refusal::Malformed("it names too many functions"))?;
        let mut out = vec![VERSION];
        out.extend_from_slice(&key.0);
        out.extend_from_slice(&self.not_before_s.to_le_bytes());
        out.extend_from_slice(&self.expires_s.to_le_bytes());
        put_name(&mut out, &self.app)?;
        match &self.process {
            Some(process) => put_name(&mut out, process)?,
            None => out.push(0),
        }
        out.push(count);
        functions.into_iter().try_for_each(|function| put_name(&mut out, function))?;
        if out.len() + SIGNATURE_LEN > MAX_TOKEN {
            return Err(Refusal::Malformed("it is over its limit: name fewer functions"));
        }
        if self.not_before_s >= self.expires_s {
            return Err(Refusal::Malformed("it expires before it begins"));
        }
        Ok(out)
    }

    /// Reads what was signed. There is one form for one content.
    fn decode(mut rest: &[u8]) -> Result<Claims, Refusal> {
        let rest = &mut rest;
        let (not_before_s, expires_s) = (take_u64(rest)?, take_u64(rest)?);
        let app = take_name(rest)?.ok_or(Refusal::Malformed("it names no application"))?;
        let process = take_name(rest)?;
        let count = take(rest, 1)?[0];
        if usize::from(count) > MAX_TOKEN_FUNCTIONS {
            return Err(Refusal::Malformed("it names too many functions"));
        }
        let missing = Refusal::Malformed("a function has no name");
        let functions: Vec<String> = (0..count)
            .map(|_| take_name(rest)?.ok_or_else(|| missing.clone()))
            .collect::<Result<_, Refusal>>()?;
        if !functions.is_sorted_by(|one, next| one < next) {
            return Err(Refusal::Malformed("its functions are not in order"));
        }
        if !rest.is_empty() {
            return Err(Refusal::Malformed("something follows its end"));
        }
        if not_before_s >= expires_s {
            return Err(Refusal::Malformed("it expires before it begins"));
        }
        let functions = (!functions.is_empty()).then_some(functions);
        Ok(Claims { app, process, functions, not_before_s, expires_s })
    }
}

impl SecretKey {
    /// Signs a token, and gives its binary form.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for claims that no token can carry.
    pub fn issue(&self, claims: &Claims) -> Result<Vec<u8>, Refusal> {
        let mut token = claims.encode(self.public().id())?;
        let signature = self.sign(&signed(&token));
        token.extend_from_slice(&signature);
        Ok(token)
    }
}

impl KeyRing {
    /// Verifies a token at `now_s`, in seconds of Unix time, and gives what it says. Which application, process and function are to be
    /// called is to be compared with that.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn verify(&self, token: &[u8], now_s: u64) -> Result<Claims, Refusal> {
        let id = key_id(token)?;
        let key = self.get(id).ok_or(Refusal::UnknownKey(id))?;
        let (said, signature) =
            token.split_last_chunk::<SIGNATURE_LEN>().ok_or(Refusal::Malformed("it is cut short"))?;
        if !key.verifies(&signed(said), signature) {
            return Err(Refusal::BadSignature);
        }
        let said = said.get(1 + KEY_ID_LEN..).ok_or(Refusal::Malformed("it is cut short"))?;
        let claims = Claims::decode(said)?;
        claims.permit_time(now_s)?;
        Ok(claims)
    }
}

/// The key that a token names. It is not verified.
///
/// # Errors
/// [`Refusal::Missing`], [`Refusal::Malformed`], [`Refusal::Version`].
pub fn key_id(token: &[u8]) -> Result<KeyId, Refusal> {
    let version = *token.first().ok_or(Refusal::Missing)?;
    if token.len() > MAX_TOKEN {
        return Err(Refusal::Malformed("it is over its limit"));
    }
    if version != VERSION {
        return Err(Refusal::Version(version));
    }
    let id = token[1..].first_chunk::<KEY_ID_LEN>().ok_or(Refusal::Malformed("it is cut short"))?;
    Ok(KeyId(*id))
}

/// The text form of a token.
pub fn to_text(token: &[u8]) -> String {
    prefixed(TOKEN_PREFIX, token)
}

/// The binary form of a token from its text; blanks around it do not matter. It is not verified.
///
/// # Errors
/// [`Refusal::Malformed`].
pub fn from_text(text: &str) -> Result<Vec<u8>, Refusal> {
    let body =
        text.trim().strip_prefix(TOKEN_PREFIX).ok_or(Refusal::Malformed("it does not begin with dzt1_"))?;
    if body.len() > MAX_TOKEN.div_ceil(3) * 4 {
        return Err(Refusal::Malformed("it is over its limit"));
    }
    BASE64_URL_SAFE_NO_PAD.decode(body).map_err(|_| Refusal::Malformed("it is not URL-safe base64"))
}

/// `prefix`, and `bytes` behind it.
fn prefixed(prefix: &str, bytes: &[u8]) -> String {
    let mut out = String::from(prefix);
    BASE64_URL_SAFE_NO_PAD.encode_string(bytes, &mut out);
    out
}

fn signed(token: &[u8]) -> Vec<u8> {
    [DOMAIN, token].concat()
}

fn put_name(out: &mut Vec<u8>, name: &str) -> Result<(), Refusal> {
    text::name(name.as_bytes()).map_err(Refusal::Malformed)?;
    out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], Refusal> {
    let (head, tail) = rest.split_at_checked(len).ok_or(Refusal::Malformed("it is cut short"))?;
    *rest = tail;
    Ok(head)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, Refusal> {
    let bytes = take(rest, 8)?;
    Ok(bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

fn take_name(rest: &mut &[u8]) -> Result<Option<String>, Refusal> {
    let len = take(rest, 1)?[0];
    if len == 0 {
        return Ok(None);
    }
    let name = text::name(take(rest, usize::from(len))?).map_err(Refusal::Malformed)?;
    Ok(Some(name.to_owned()))
}

#[cfg(test)]
mod tests;
