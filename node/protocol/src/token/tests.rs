//! Forged, changed, expired and misdirected tokens, and the rotation of keys.

use proptest::prelude::*;

use super::*;
use crate::limits::{MAX_KEYS, MAX_NAME};

fn key(seed: u8) -> SecretKey {
    SecretKey::from_random(&[seed; 32])
}

fn ring(keys: &[&SecretKey]) -> KeyRing {
    let mut ring = KeyRing::new();
    keys.iter().for_each(|key| ring.add(key.public()).unwrap());
    ring
}

fn claims() -> Claims {
    Claims {
        app: "shop".to_owned(),
        process: Some("alice".to_owned()),
        functions: Some(vec!["get".to_owned(), "put".to_owned()]),
        not_before_s: 100,
        expires_s: 200,
    }
}

#[test]
fn a_token_says_what_was_signed() {
    let token = key(1).issue(&claims()).unwrap();
    assert_eq!(ring(&[&key(1)]).verify(&token, 150), Ok(claims()));
    let any = Claims { process: None, functions: None, ..claims() };
    let token = key(1).issue(&any).unwrap();
    assert_eq!(ring(&[&key(1)]).verify(&token, 150), Ok(any));
}

#[test]
fn a_flipped_bit_in_any_byte_is_refused() {
    let token = key(1).issue(&claims()).unwrap();
    let ring = ring(&[&key(1)]);
    // One bit of each byte, another one each time: a verification is slow without optimisation.
    for bit in (0..token.len()).map(|at| at * 8 + at % 8) {
        let mut forged = token.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        let refusal = ring.verify(&forged, 150).unwrap_err();
        let expected = match bit / 8 {
            0 => matches!(refusal, Refusal::Version(_)),
            1..=8 => matches!(refusal, Refusal::UnknownKey(_)),
            _ => refusal == Refusal::BadSignature,
        };
        assert!(expected, "bit {bit}: {refusal:?}");
    }
    for cut in 0..token.len() {
        assert!(ring.verify(&token[..cut], 150).is_err(), "cut at {cut}");
    }
}

#[test]
fn time_is_compared_to_the_second() {
    let token = key(1).issue(&claims()).unwrap();
    let ring = ring(&[&key(1)]);
    assert_eq!(ring.verify(&token, 99), Err(Refusal::NotYet { in_s: 1 }));
    assert!(ring.verify(&token, 100).is_ok());
    assert!(ring.verify(&token, 199).is_ok());
    assert_eq!(ring.verify(&token, 200), Err(Refusal::Expired { since_s: 0 }));
}

#[test]
fn a_token_is_for_what_it_names() {
    let claims = claims();
    assert_eq!(claims.permit_app("shop"), Ok(()));
    assert_eq!(claims.permit_app("shop2"), Err(Refusal::WrongApp));
    assert_eq!(claims.permit_process("alice"), Ok(()));
    assert_eq!(claims.permit_process("bob"), Err(Refusal::WrongProcess));
    assert_eq!(claims.permit_function("put"), Ok(()));
    assert_eq!(claims.permit_function("delete"), Err(Refusal::WrongFunction));
    let any = Claims { process: None, functions: None, ..claims };
    assert!(any.permit_process("bob").is_ok() && any.permit_function("delete").is_ok());
}

#[test]
fn keys_rotate() {
    let (old, new) = (key(1), key(2));
    let (before, after) = (old.issue(&claims()).unwrap(), new.issue(&claims()).unwrap());
    let mut ring = ring(&[&old, &new]);
    assert!(ring.verify(&before, 150).is_ok() && ring.verify(&after, 150).is_ok());
    assert!(ring.remove(old.public().id()));
    assert!(!ring.remove(old.public().id()));
    assert_eq!(ring.verify(&before, 150), Err(Refusal::UnknownKey(old.public().id())));
    assert!(ring.verify(&after, 150).is_ok());
}

#[test]
fn a_key_cannot_sign_for_another() {
    let mut token = key(2).issue(&claims()).unwrap();
    token[1..9].copy_from_slice(&key(1).public().id().0);
    assert_eq!(ring(&[&key(1), &key(2)]).verify(&token, 150), Err(Refusal::BadSignature));
}

#[test]
fn a_signature_over_something_else_is_none_of_a_token() {
    let key = key(1);
    let mut token = claims().encode(key.public().id()).unwrap();
    let signature = key.sign(&token);
    token.extend_from_slice(&signature);
    assert_eq!(ring(&[&key]).verify(&token, 150), Err(Refusal::BadSignature));
}

#[test]
fn signed_nonsense_is_refused_all_the_same() {
    let key = key(1);
    let sign = |mut token: Vec<u8>| {
        let signature = key.sign(&signed(&token));
        token.extend_from_slice(&signature);
        token
    };
    let good = claims().encode(key.public().id()).unwrap();
    let mut longer = good.clone();
    longer.push(0);
    let mut swapped = good.clone();
    let at = good.len() - 8;
    swapped[at..].copy_from_slice(b"\x03put\x03get");
    let mut timeless = good.clone();
    timeless[9..17].copy_from_slice(&500_u64.to_le_bytes());
    for (what, said) in
        [("longer", longer), ("swapped", swapped), ("timeless", timeless), ("short", good[..30].to_vec())]
    {
        let refusal = ring(&[&key]).verify(&sign(said), 150);
        assert!(matches!(refusal, Err(Refusal::Malformed(_))), "{what}: {refusal:?}");
    }
    assert!(ring(&[&key]).verify(&sign(good), 150).is_ok());
}

#[test]
fn claims_that_no_token_can_carry_are_not_signed() {
    let issue = |claims: &Claims| key(1).issue(claims).map(drop);
    for bad in [
        Claims { app: "a/b".to_owned(), ..claims() },
        Claims { process: Some(String::new()), ..claims() },
        Claims { functions: Some(Vec::new()), ..claims() },
        Claims {
            functions: Some(vec!["f".repeat(MAX_NAME); 1 + MAX_TOKEN_FUNCTIONS]),
            expires_s: 0,
            ..claims()
        },
        Claims { functions: Some((0..33).map(|n| format!("f{n}")).collect()), ..claims() },
        Claims { functions: Some((10..20).map(|n| n.to_string().repeat(64)).collect()), ..claims() },
        Claims { expires_s: 100, ..claims() },
    ] {
        assert!(matches!(issue(&bad), Err(Refusal::Malformed(_))), "{bad:?}");
    }
    let most = Claims { functions: Some((0..32).map(|n| format!("f{n}")).collect()), ..claims() };
    assert_eq!(issue(&most), Ok(()));
}

#[test]
fn texts_go_through_and_back() {
    let token = key(1).issue(&claims()).unwrap();
    let text = to_text(&token);
    assert!(text.starts_with("dzt1_"));
    assert_eq!(from_text(&format!(" {text}\n")), Ok(token));
    assert!(from_text("dzt1_!").is_err());
    assert!(from_text(&text[5..]).is_err());
    assert!(from_text(&format!("dzt1_{}", "A".repeat(2000))).is_err());
    let public = key(1).public();
    assert_eq!(PublicKey::from_text(&public.to_string()), Ok(public));
    let secret = key(1).to_secret_text();
    assert_eq!(SecretKey::from_secret_text(&secret).unwrap().public(), public);
    assert!(PublicKey::from_text(&secret).is_err(), "a secret is no public key");
    assert!(!format!("{:?}", key(1)).contains(&secret[10..]));
}

#[test]
fn a_key_that_signs_anything_is_not_taken() {
    let identity = prefixed("dzp1_", &{
        let mut point = [0; 32];
        point[0] = 1;
        point
    });
    assert!(PublicKey::from_text(&identity).is_err());
}

#[test]
fn a_ring_is_bounded_and_has_no_two_keys_of_one_id() {
    let mut ring = KeyRing::new();
    for n in 0..MAX_KEYS {
        ring.add(key(u8::try_from(n).unwrap()).public()).unwrap();
    }
    assert_eq!(ring.add(key(200).public()), Err(KeyRingError::Full));
    assert_eq!(ring.add(key(0).public()), Ok(()), "it is there already");
    assert_eq!(ring.keys().len(), MAX_KEYS);
}

#[test]
fn what_is_not_quite_base64_is_no_token() {
    assert_eq!(from_text("dzt1_-_8"), Ok(vec![0xFB, 0xFF]));
    for bad in ["Z", "Zg==", "Zh", "Zm9v\nZg", "+/8"] {
        assert!(from_text(&format!("dzt1_{bad}")).is_err(), "{bad}");
    }
}

proptest! {
    /// Two texts of one token would pass a list of those that are revoked, or be counted as two.
    #[test]
    fn there_is_one_text_for_given_bytes(text in "dzt1_[A-Za-z0-9_=+-]{0,12}") {
        if let Ok(bytes) = from_text(&text) {
            prop_assert_eq!(to_text(&bytes), text);
        }
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300), named in any::<bool>()) {
        let mut bytes = bytes;
        if named && bytes.len() > 9 {
            bytes[0] = 1;
            bytes[1..9].copy_from_slice(&key(1).public().id().0);
        }
        prop_assert!(ring(&[&key(1)]).verify(&bytes, 150).is_err());
        let _ = Claims::decode(&bytes);
    }
}
