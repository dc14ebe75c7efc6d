//! The few bytes of DER (X.690) that make a PKCS#8 key out of a SEC1 key.

/// `AlgorithmIdentifier` of a key on P-256: id-ecPublicKey and prime256v1 (RFC 5480 section 2.1.1).
pub(super) const P256: [u8; 21] = [
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07,
];

/// `AlgorithmIdentifier` of a key on P-384: id-ecPublicKey and secp384r1.
pub(super) const P384: [u8; 18] = [
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22,
];

const INTEGER_0: [u8; 3] = [0x02, 0x01, 0x00];
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// `PrivateKeyInfo` (RFC 5208 section 5) with a SEC1 key. `None` if the key is too long to be one.
pub(super) fn pkcs8_of_sec1(algorithm: &[u8], sec1: &[u8]) -> Option<Vec<u8>> {
    let key = element(OCTET_STRING, sec1)?;
    element(SEQUENCE, &[&INTEGER_0, algorithm, &key].concat())
}

fn element(tag: u8, content: &[u8]) -> Option<Vec<u8>> {
    let [high, low] = u16::try_from(content.len()).ok()?.to_be_bytes();
    let header: &[u8] = match content.len() {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    Some([header, content].concat())
}
