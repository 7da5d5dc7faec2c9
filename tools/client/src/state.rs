//! The objects of a process from outside: listed, got, put, deleted, all of them at once in and out; and its captured files. Needs the
//! node's token.

use std::{
    fmt,
    io::{self, Read},
};

use serde::Deserialize;
use ureq::{
    Body, BodyReader, SendBody,
    http::{HeaderMap, Response, request::Builder},
};

use crate::{
    error::ClientError,
    node::{InputReader, Node},
    path,
};

/// What is known of an object without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its key.
    pub key: Vec<u8>,
    /// Length of its value.
    pub bytes: u64,
    /// Fingerprint of its type; 0 for plain bytes.
    pub fingerprint: u64,
    /// Number of the commit that wrote it.
    pub version: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A part of the keys of a process, in the order of their bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectList {
    /// The keys.
    pub objects: Vec<ObjectInfo>,
    /// Whether there are more behind the last of these.
    pub more: bool,
    /// The commit that this is the state of.
    pub commit: u64,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What is known of it.
    pub info: ObjectInfo,
    /// Its value.
    pub value: Vec<u8>,
}

/// An archive of all objects or all files, or one file, as it streams out.
pub struct Export {
    body: BodyReader<'static>,
}

impl Read for Export {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.body.read(buf)
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

/// What was captured under a path below `/state`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFile {
    /// The path.
    pub path: Vec<u8>,
    /// What is there.
    pub kind: Captured,
}

/// A captured file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Captured {
    /// A directory.
    Directory {
        /// Its permission bits.
        mode: u32,
    },
    /// A file.
    File {
        /// Its permission bits.
        mode: u32,
        /// Its length.
        bytes: u64,
        /// When it was modified, in seconds since 1970.
        modified_s: i64,
    },
    /// Its entry is damaged, so that nobody can tell.
    Damaged {
        /// What is wrong.
        why: String,
    },
}

#[derive(Deserialize)]
struct RawFiles {
    files: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    path: String,
    #[serde(flatten)]
    kind: Captured,
}

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Imported {
    /// How many objects were put.
    pub keys: u64,
    /// The commit that put the last of them.
    pub commit: u64,
}

#[derive(Deserialize)]
struct RawList {
    keys: Vec<RawKey>,
    more: bool,
    commit: u64,
}

#[derive(Deserialize)]
struct RawKey {
    key: String,
    bytes: u64,
    fingerprint: String,
    version: u64,
    time_ms: u64,
}

impl Node {
    /// The keys of a process that begin with `prefix` and come after `after`: as many as the node gives at once.
    pub fn objects(
        &self,
        app: &str,
        process: &str,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> Result<ObjectList, ClientError> {
        let mut query = "?prefix=".to_owned();
        path::encode_bytes_into(&mut query, prefix);
        if let Some(after) = after {
            query.push_str("&after=");
            path::encode_bytes_into(&mut query, after);
        }
        let request =
            self.request_with_query("GET", &["v1", "apps", app, "processes", process, "state"], &query);
        let list: RawList = self.json(self.send(request, SendBody::none())?)?;
        let objects = list.keys.into_iter().map(|raw| self.object_info(raw)).collect::<Result<_, _>>()?;
        Ok(ObjectList { objects, more: list.more, commit: list.commit })
    }

    fn object_info(&self, raw: RawKey) -> Result<ObjectInfo, ClientError> {
        let key = from_hex(&raw.key).ok_or_else(|| self.nonsense(format!("`{}` is no key", raw.key)))?;
        let fingerprint = raw.fingerprint.parse();
        let fingerprint =
            fingerprint.map_err(|_| self.nonsense(format!("`{}` is no fingerprint", raw.fingerprint)))?;
        Ok(ObjectInfo { key, bytes: raw.bytes, fingerprint, version: raw.version, time_ms: raw.time_ms })
    }

    /// One object.
    pub fn object(&self, app: &str, process: &str, key: &[u8]) -> Result<Object, ClientError> {
        let response = self.send(self.object_request("GET", app, process, key), SendBody::none())?;
        let number = |name| self.number(&response, name);
        let (fingerprint, version, time_ms) =
            (number("denizen-fingerprint")?, number("denizen-version")?, number("denizen-time-ms")?);
        let mut value = Vec::new();
        let read = response.into_body().into_reader().read_to_end(&mut value);
        read.map_err(|source| self.broke_off("reading the object", source))?;
        let (key, bytes) = (key.to_vec(), value.len() as u64);
        Ok(Object { info: ObjectInfo { key, bytes, fingerprint, version, time_ms }, value })
    }

    /// Puts an object with the fingerprint of its type (0 for plain bytes); gives the commit.
    pub fn put_object(
        &self,
        app: &str,
        process: &str,
        key: &[u8],
        fingerprint: u64,
        value: &[u8],
    ) -> Result<u64, ClientError> {
        let request = self
            .object_request("PUT", app, process, key)
            .header("Denizen-Fingerprint", fingerprint)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", value.len());
        let mut value = value;
        let response = self.send(request, SendBody::from_reader(&mut value))?;
        self.number(&response, "denizen-commit")
    }

    /// Deletes an object; gives the commit.
    pub fn delete_object(&self, app: &str, process: &str, key: &[u8]) -> Result<u64, ClientError> {
        let response = self.send(self.object_request("DELETE", app, process, key), SendBody::none())?;
        self.number(&response, "denizen-commit")
    }

    /// All objects, as one archive that streams.
    pub fn export(&self, app: &str, process: &str) -> Result<Export, ClientError> {
        let request = self.request("GET", &["v1", "apps", app, "processes", process, "export"]);
        let response = self.send(request, SendBody::none())?;
        Ok(Export { body: response.into_body().into_reader() })
    }

    /// Puts all objects of an archive; what else there is stays.
    pub fn import(&self, app: &str, process: &str, archive: &mut dyn Read) -> Result<Imported, ClientError> {
        let request = self
            .request("POST", &["v1", "apps", app, "processes", process, "import"])
            .header("Content-Type", "application/octet-stream")
            .header("Expect", "100-continue");
        let mut archive = InputReader(archive);
        self.json(self.send(request, SendBody::from_reader(&mut archive))?)
    }

    /// The captured files of a process, in the order of their paths.
    pub fn files(&self, app: &str, process: &str) -> Result<Vec<CapturedFile>, ClientError> {
        let request = self.request("GET", &["v1", "apps", app, "processes", process, "files"]);
        let list: RawFiles = self.json(self.send(request, SendBody::none())?)?;
        let file = |RawFile { path, kind }| match from_hex(&path) {
            Some(path) => Ok(CapturedFile { path, kind }),
            None => Err(self.nonsense(format!("`{path}` is no path"))),
        };
        list.files.into_iter().map(file).collect()
    }

    /// The bytes of a captured file, as they stream out.
    pub fn file(&self, app: &str, process: &str, file: &[u8]) -> Result<Export, ClientError> {
        let mut last = "/".to_owned();
        path::encode_bytes_into(&mut last, file);
        let request =
            self.request_with_query("GET", &["v1", "apps", app, "processes", process, "files"], &last);
        let response = self.send(request, SendBody::none())?;
        Ok(Export { body: response.into_body().into_reader() })
    }

    /// All captured files, as a tar archive that streams.
    pub fn files_archive(&self, app: &str, process: &str) -> Result<Export, ClientError> {
        let request = self.request("GET", &["v1", "apps", app, "processes", process, "files.tar"]);
        let response = self.send(request, SendBody::none())?;
        Ok(Export { body: response.into_body().into_reader() })
    }

    fn object_request(&self, method: &str, app: &str, process: &str, key: &[u8]) -> Builder {
        // A key need not be text, as other segments are.
        let mut last = "/".to_owned();
        path::encode_bytes_into(&mut last, key);
        self.request_with_query(method, &["v1", "apps", app, "processes", process, "state"], &last)
    }

    fn number(&self, response: &Response<Body>, name: &str) -> Result<u64, ClientError> {
        let read = |headers: &HeaderMap| headers.get(name)?.to_str().ok()?.parse().ok();
        read(response.headers()).ok_or_else(|| self.nonsense(format!("the header {name} is missing")))
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
