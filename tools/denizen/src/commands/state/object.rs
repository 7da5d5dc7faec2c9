//! Objects in JSON: a line of an export, the answer of `get --json`, and the way back.
//!
//! ```json
//! {"key":"counter","type":"Counter","fingerprint":"1234","version":7,"time_ms":1700000000000,"bytes":8,"value":{"count":7}}
//! {"key":"0xff00","type":null,"fingerprint":"0","version":8,"time_ms":1700000000000,"bytes":2,"base64":"AAE="}
//! ```
//!
//! What it holds is in exactly one of `value` (typed), `text` (bytes that are readable text) and `base64` (all other bytes). Read back,
//! only key, type or fingerprint, and that one matter.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use denizen_client::{Object, ObjectInfo};
use denizen_layout::Writing;
use serde_json::{Value, json};

use super::{
    key::Key,
    source::Put,
    types::{Types, number},
};
use crate::failure::Failure;

/// Everything but the value.
pub(super) fn described(types: &Types, info: &ObjectInfo) -> Value {
    json!({
        "key": Key::of(&info.key).to_string(), "type": types.name(info.fingerprint),
        "fingerprint": info.fingerprint.to_string(), "version": info.version, "time_ms": info.time_ms,
        "bytes": info.bytes,
    })
}

/// With the value. One that does not fit its type is shown as bytes, with the reason: nothing is left out.
pub(super) fn whole(types: &Types, object: &Object) -> Value {
    let mut json = described(types, &object.info);
    match types.find(object.info.fingerprint).map(|known| known.read(&object.value)) {
        Some(Ok(value)) => json["value"] = value,
        Some(Err(error)) => {
            json["unreadable"] = error.to_string().into();
            json["base64"] = BASE64_STANDARD.encode(&object.value).into();
        }
        None => match std::str::from_utf8(&object.value) {
            Ok(text) if object.info.fingerprint == 0 && is_readable(&object.value) => {
                json["text"] = text.into()
            }
            _ => json["base64"] = BASE64_STANDARD.encode(&object.value).into(),
        },
    }
    json
}

/// Whether these bytes are text that people can read.
pub(super) fn is_readable(bytes: &[u8]) -> bool {
    let is_odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(is_odd))
}

/// Key, fingerprint and bytes of what [`whole`] wrote, perhaps in another image's time.
pub(super) fn parse(types: &Types, json: &Value, writing: Writing) -> Result<Put, Failure> {
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    let wrong = |what: &str| {
        Failure::usage(what).remedy("every object has `key`, and one of `value`, `text`, `base64`")
    };
    let key = Key::parse(text("key").ok_or_else(|| wrong("the object has no `key`"))?).bytes().to_vec();
    let fingerprint =
        json.get("fingerprint").map(|json| number(json).ok_or_else(|| wrong("`fingerprint` is none")));
    let fingerprint = fingerprint.transpose()?;
    let plain = |value| Put { key: key.clone(), fingerprint: fingerprint.unwrap_or(0), value };
    let base64 = text("base64").map(|text| BASE64_STANDARD.decode(text));
    match (json.get("value"), text("text"), base64) {
        (Some(value), None, None) => {
            let known = fingerprint.and_then(|fingerprint| types.find(fingerprint));
            // The type may have changed since: then its name decides, and whether the value fits.
            let of = match (known, text("type")) {
                (Some(known), _) => types.named(&known.name)?,
                (None, Some(name)) => types.named(name)?,
                (None, None) => return Err(wrong("the object has a `value` and no `type`")),
            };
            let bytes = of.write(value, writing)?;
            Ok(Put { fingerprint: of.fingerprint, ..plain(bytes) })
        }
        (None, Some(text), None) => Ok(plain(text.as_bytes().to_vec())),
        (None, None, Some(Ok(bytes))) => Ok(plain(bytes)),
        (None, None, Some(Err(error))) => Err(wrong("`base64` is none").because(&error)),
        _ => Err(wrong("the object has not exactly one value")),
    }
}

#[cfg(test)]
mod tests {
    use denizen_client::{Object, ObjectInfo};
    use denizen_layout::{Layout, Writing};
    use serde_json::json;

    use super::{parse, whole};
    use crate::commands::state::{source::Put, types::Types};

    #[test]
    fn objects_come_around() {
        let types = Types::of(&[]);
        let number = Layout::parse("u32").unwrap().fingerprint();
        for (key, fingerprint, value, member) in [
            (&b"n"[..], number, vec![7, 0, 0, 0], "value"),
            (b"short", number, vec![7], "base64"),
            (b"\xff", 0, b"text\n".to_vec(), "text"),
            (b"0xab", 0, vec![0x1b, b'['], "base64"),
            (b"odd", 99, vec![1, 2, 3], "base64"),
            (b"empty", 0, vec![], "text"),
        ] {
            let (key, bytes) = (key.to_vec(), value.len() as u64);
            let object =
                Object { info: ObjectInfo { key, bytes, fingerprint, version: 1, time_ms: 2 }, value };
            let json = whole(&types, &object);
            assert!(json.get(member).is_some(), "{json}");
            let back = parse(&types, &json, Writing::default()).unwrap();
            assert_eq!(back, Put { key: object.info.key, fingerprint, value: object.value });
        }
        for wrong in [
            json!({}),
            json!({"key": "k"}),
            json!({"key": "k", "text": "a", "base64": "YQ=="}),
            json!({"key": "k", "base64": "?"}),
            json!({"key": "k", "value": 1}),
            json!({"key": "k", "type": "u8", "value": 256}),
            json!({"key": "k", "fingerprint": "x", "text": ""}),
            json!([]),
        ] {
            assert!(parse(&types, &wrong, Writing::default()).is_err(), "{wrong}");
        }
    }
}
