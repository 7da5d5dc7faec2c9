//! From a request's path to what it asks for. Pure.
//!
//! Names are checked on the bytes that percent-decoding gives, before anything is looked up: `a%2Fb` is one bad name, not two
//! segments. What is returned holds only names that obey the rule.

use std::borrow::Cow;

use denizen_image::ImageId;
use denizen_wire::archive::MAX_KEY;
use hyper::Method;

use crate::problem::{Kind, Problem};

/// A checked name from a path or a header.
pub(crate) type Name<'a> = Cow<'a, str>;

/// An application and one of its processes.
pub(crate) type Object<'a> = (Name<'a>, Name<'a>);

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// `None`: the process is named by a header, or not at all.
    Call {
        app: Name<'a>,
        process: Option<Name<'a>>,
        function: Name<'a>,
    },
    Node,
    Apps,
    AppImage(Name<'a>),
    Images,
    Image(ImageId),
    PruneImages,
    AppProcesses(Name<'a>),
    Processes,
    Process(Name<'a>, Name<'a>),
    SwapOut(Name<'a>, Name<'a>),
    SwapIn(Name<'a>, Name<'a>),
    State(Object<'a>),
    /// One object, by its key.
    Key(Object<'a>, Vec<u8>),
    Export(Object<'a>),
    Import(Object<'a>),
    Files(Object<'a>),
    /// A captured file, by its path below `/state`.
    File(Object<'a>, Vec<u8>),
    FilesArchive(Object<'a>),
    Commit(Object<'a>, u64),
    Logs,
    Shutdown,
}

impl Route<'_> {
    /// The methods that it has, as `Allow` lists them.
    pub(crate) const fn methods(&self) -> &'static str {
        match self {
            Route::Call { .. }
            | Route::SwapOut(..)
            | Route::SwapIn(..)
            | Route::Import(_)
            | Route::PruneImages
            | Route::Shutdown => "POST",
            Route::Image(_) => "DELETE",
            Route::AppImage(_) => "GET, PUT",
            Route::Key(..) => "GET, PUT, DELETE",
            Route::Process(..) => "GET, POST, DELETE",
            _ => "GET",
        }
    }

    /// Whether it has `method`.
    pub(crate) fn has(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|one| one == method.as_str())
    }
}

/// What `path` names.
///
/// # Errors
/// `unknown-path`, or `bad-name` where a name is to be and something else is.
pub(crate) fn parse(path: &str) -> Result<Route<'_>, Problem> {
    let unknown = || Problem::new(Kind::UnknownPath, format!("there is nothing at {}", shown(path)));
    let mut segments = path.strip_prefix("/v1/").ok_or_else(unknown)?.split('/');
    let mut parts = [""; 6];
    let mut count = 0;
    for segment in segments.by_ref() {
        *parts.get_mut(count).ok_or_else(unknown)? = segment;
        count += 1;
    }
    Ok(match parts.get(..count).unwrap_or_default() {
        ["apps", app, "processes", process, "functions", function] => {
            Route::Call { app: name(app)?, process: Some(name(process)?), function: name(function)? }
        }
        ["apps", app, "functions", function] => {
            Route::Call { app: name(app)?, process: None, function: name(function)? }
        }
        ["node"] => Route::Node,
        ["apps"] => Route::Apps,
        ["apps", app, "image"] => Route::AppImage(name(app)?),
        ["images"] => Route::Images,
        // No id reads so.
        ["images", "prune"] => Route::PruneImages,
        ["images", image] => Route::Image(image_id(image)?),
        ["apps", app, "processes"] => Route::AppProcesses(name(app)?),
        ["processes"] => Route::Processes,
        ["apps", app, "processes", process] => Route::Process(name(app)?, name(process)?),
        ["apps", app, "processes", process, "swap-out"] => Route::SwapOut(name(app)?, name(process)?),
        ["apps", app, "processes", process, "swap-in"] => Route::SwapIn(name(app)?, name(process)?),
        ["apps", app, "processes", process, "state"] => Route::State((name(app)?, name(process)?)),
        ["apps", app, "processes", process, "state", encoded] => {
            Route::Key((name(app)?, name(process)?), key(encoded)?)
        }
        ["apps", app, "processes", process, "export"] => Route::Export((name(app)?, name(process)?)),
        ["apps", app, "processes", process, "import"] => Route::Import((name(app)?, name(process)?)),
        ["apps", app, "processes", process, "files"] => Route::Files((name(app)?, name(process)?)),
        ["apps", app, "processes", process, "files", encoded] => {
            Route::File((name(app)?, name(process)?), file_path(encoded)?)
        }
        ["apps", app, "processes", process, "files.tar"] => Route::FilesArchive((name(app)?, name(process)?)),
        ["apps", app, "processes", process, "commits", number] => {
            Route::Commit((name(app)?, name(process)?), commit(number)?)
        }
        ["logs"] => Route::Logs,
        ["shutdown"] => Route::Shutdown,
        _ => return Err(unknown()),
    })
}

/// # Errors
/// `bad-name`.
fn image_id(text: &str) -> Result<ImageId, Problem> {
    let bad =
        |_| Problem::new(Kind::BadName, format!("{} is no image id: 64 hexadecimal digits", shown(text)));
    text.parse().map_err(bad)
}

/// Decodes and checks one name.
///
/// # Errors
/// `bad-name`.
pub(crate) fn name(encoded: &str) -> Result<Name<'_>, Problem> {
    let decoded = decode(encoded)?;
    denizen_sched::names::check(&decoded).map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
    Ok(decoded)
}

/// The key of an object: any bytes, percent-encoded.
///
/// # Errors
/// `bad-request`.
fn key(encoded: &str) -> Result<Vec<u8>, Problem> {
    let bad = |why: &str| Problem::new(Kind::BadRequest, format!("the key {} {why}", shown(encoded)));
    let key =
        decode_bytes(encoded).ok_or_else(|| bad("has a `%` that two hexadecimal digits do not follow"))?;
    if !(1..=MAX_KEY).contains(&key.len()) {
        return Err(bad(&format!("has {} bytes: 1 to {MAX_KEY} are allowed", key.len())));
    }
    Ok(key)
}

/// The path of a file below `/state`, percent-encoded with its slashes.
///
/// # Errors
/// `bad-request`.
fn file_path(encoded: &str) -> Result<Vec<u8>, Problem> {
    let bad = || {
        let text = format!("{} is no path of a file, percent-encoded, `/` too", shown(encoded));
        Problem::new(Kind::BadRequest, text)
    };
    decode_bytes(encoded).filter(|path| denizen_engine::is_file_path(path)).ok_or_else(bad)
}

/// # Errors
/// `bad-request`.
fn commit(text: &str) -> Result<u64, Problem> {
    let bad = |_| Problem::new(Kind::BadRequest, format!("{} is no commit number", shown(text)));
    text.parse().map_err(bad)
}

fn decode_bytes(encoded: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (rest.next().and_then(hex_digit)?, rest.next().and_then(hex_digit)?);
        bytes.push(high << 4 | low);
    }
    Some(bytes)
}

/// Percent-decodes; what is no UTF-8 afterwards is no name.
fn decode(encoded: &str) -> Result<Cow<'_, str>, Problem> {
    if !encoded.contains('%') {
        return Ok(Cow::Borrowed(encoded));
    }
    let bad = |why: &str| Problem::new(Kind::BadName, format!("the name {} {why}", shown(encoded)));
    let bytes =
        decode_bytes(encoded).ok_or_else(|| bad("has a `%` that two hexadecimal digits do not follow"))?;
    String::from_utf8(bytes).map(Cow::Owned).map_err(|_| bad("is not UTF-8"))
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// At most 80 characters of something that a caller sent, in quotes.
pub(crate) fn shown(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() { format!("{start:?}...") } else { format!("{start:?}") }
}

/// The values of `wanted` keys in a query string, decoded; of a key that is there twice, the last.
///
/// # Errors
/// `bad-request` for a broken escape.
pub(crate) fn query<const N: usize>(
    query: Option<&str>,
    wanted: [&str; N],
) -> Result<[Option<String>; N], Problem> {
    let mut values = [const { None }; N];
    for ((value, slot), key) in query_bytes(query, wanted)?.into_iter().zip(&mut values).zip(wanted) {
        let broken = |_| Problem::new(Kind::BadRequest, format!("the query's {key} cannot be decoded"));
        *slot = value.map(String::from_utf8).transpose().map_err(broken)?;
    }
    Ok(values)
}

/// As [`query`], for values that need not be text.
///
/// # Errors
/// `bad-request` for a broken escape.
pub(crate) fn query_bytes<const N: usize>(
    query: Option<&str>,
    wanted: [&str; N],
) -> Result<[Option<Vec<u8>>; N], Problem> {
    let mut values = [const { None }; N];
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let Some(slot) = wanted.iter().position(|one| *one == key).and_then(|at| values.get_mut(at)) {
            let broken = || Problem::new(Kind::BadRequest, format!("the query's {key} cannot be decoded"));
            *slot = Some(decode_bytes(value).ok_or_else(broken)?);
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "/v1/images/00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn refused(path: &str) -> Kind {
        parse(path).expect_err(path).kind()
    }

    #[test]
    fn every_path_of_the_interface_is_known() {
        let call = |process: Option<&'static str>| Route::Call {
            app: "a".into(),
            process: process.map(Into::into),
            function: "f".into(),
        };
        let (a, p) = (|| Name::from("a"), || Name::from("p"));
        for (path, route) in [
            ("/v1/apps/a/processes/p/functions/f", call(Some("p"))),
            ("/v1/apps/a/functions/f", call(None)),
            ("/v1/node", Route::Node),
            ("/v1/apps", Route::Apps),
            ("/v1/apps/a/image", Route::AppImage(a())),
            ("/v1/images", Route::Images),
            (IMAGE, Route::Image(IMAGE.trim_start_matches("/v1/images/").parse().unwrap())),
            ("/v1/images/prune", Route::PruneImages),
            ("/v1/apps/a/processes", Route::AppProcesses(a())),
            ("/v1/processes", Route::Processes),
            ("/v1/apps/a/processes/p", Route::Process(a(), p())),
            ("/v1/apps/a/processes/p/swap-out", Route::SwapOut(a(), p())),
            ("/v1/apps/a/processes/p/swap-in", Route::SwapIn(a(), p())),
            ("/v1/apps/a/processes/p/state", Route::State((a(), p()))),
            ("/v1/apps/a/processes/p/state/k", Route::Key((a(), p()), b"k".to_vec())),
            ("/v1/apps/a/processes/p/state/a%2Fb%00%FF", Route::Key((a(), p()), b"a/b\0\xFF".to_vec())),
            ("/v1/apps/a/processes/p/export", Route::Export((a(), p()))),
            ("/v1/apps/a/processes/p/import", Route::Import((a(), p()))),
            ("/v1/apps/a/processes/p/files", Route::Files((a(), p()))),
            ("/v1/apps/a/processes/p/files/b%2Fc%FF", Route::File((a(), p()), b"b/c\xFF".to_vec())),
            ("/v1/apps/a/processes/p/files.tar", Route::FilesArchive((a(), p()))),
            ("/v1/apps/a/processes/p/commits/7", Route::Commit((a(), p()), 7)),
            ("/v1/logs", Route::Logs),
            ("/v1/shutdown", Route::Shutdown),
        ] {
            assert_eq!(parse(path), Ok(route), "{path}");
        }
    }

    #[test]
    fn other_paths_are_unknown() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/",
            "/v2/node",
            "/v1/node/",
            "//v1/node",
            "/v1/apps/a/b",
            "/v1/a/b/c/d/e/f/g/h",
        ] {
            assert_eq!(refused(path), Kind::UnknownPath, "{path}");
        }
    }

    #[test]
    fn names_are_checked_after_decoding() {
        let long = "x".repeat(129);
        for name in [
            "a%2Fb", "..", "%2e%2e", ".", "a%00b", "a%FFb", "%", "%4", "%zz", "-a", "%2Da", "", "a%20b",
            "\u{e9}", &long,
        ] {
            let path = format!("/v1/apps/{name}/processes/p/functions/f");
            assert_eq!(refused(&path), Kind::BadName, "{name}");
        }
        assert_eq!(refused("/v1/images/0011"), Kind::BadName);
        assert_eq!(refused(&IMAGE.replace("0011", "..%2F")), Kind::BadName);
        let decoded = parse("/v1/apps/%61%2eb/functions/f%5F1");
        assert_eq!(decoded, Ok(Route::Call { app: "a.b".into(), process: None, function: "f_1".into() }));
    }

    #[test]
    fn keys_and_commits_are_checked() {
        let long = "x".repeat(1025);
        for end in [
            "state/",
            "state/%",
            "state/%4",
            "commits/",
            "commits/-1",
            "commits/x",
            &format!("state/{long}"),
            "files/",
            "files/..%2Fx",
            "files/%2Fx",
            "files/%",
        ] {
            assert_eq!(refused(&format!("/v1/apps/a/processes/p/{end}")), Kind::BadRequest, "{end}");
        }
        assert!(parse(&format!("/v1/apps/a/processes/p/state/{}", &long[1..])).is_ok());
    }

    #[test]
    fn methods_are_those_of_the_interface() {
        let process = parse("/v1/apps/a/processes/p").unwrap();
        assert!(process.has(&Method::DELETE) && process.has(&Method::GET) && process.has(&Method::POST));
        assert!(!process.has(&Method::PUT));
        assert!(!parse("/v1/node").unwrap().has(&Method::POST));
    }

    #[test]
    fn a_query_is_read_by_key() {
        let values = query(Some("app=a%62&follow=1&app=c&x=y"), ["app", "process", "follow"]);
        assert_eq!(values, Ok([Some("c".into()), None, Some("1".into())]));
        assert!(query(Some("app=%"), ["app"]).is_err());
        assert_eq!(query(None, ["app"]), Ok([None]));
    }
}
