//! What makes one clone of a template different from the next.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Fewest and most bytes of [`Entropy`] that a guest takes: the strength of its generator's key, and
/// the size of one pool.
const ENTROPY: std::ops::RangeInclusive<usize> = 32..=256;

/// Longest hostname in bytes, `HOST_NAME_MAX` of uname(2).
const HOSTNAME: usize = 64;

/// Where a UUID's text has its dashes, RFC 9562 section 4.
const DASHES: [usize; 4] = [8, 13, 18, 23];

/// Everything that a clone must not share with another clone of its template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renewal {
    /// Fresh random bytes of the host, used once. As hexadecimal digits in the message.
    pub entropy: Entropy,
    /// `CLOCK_REALTIME` of the host when this message is sent, in nanoseconds.
    pub realtime_ns: u64,
    pub hostname: String,
    /// `/etc/machine-id`, machine-id(5): 32 lower-case hexadecimal digits, not all zero.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`, random(4): a random UUID (version 4) in lower case.
    pub boot_id: String,
}

/// A field of a [`Renewal`] that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewalError {
    #[error("entropy: {0} bytes, 32 to 256 are needed")]
    Entropy(usize),
    #[error("realtime_ns: zero is no time of day")]
    Realtime,
    #[error("hostname: has to be 1 to 64 bytes without a zero byte")]
    Hostname,
    #[error("machine_id: has to be 32 digits of 0-9a-f, not all zero")]
    MachineId,
    #[error(
        "boot_id: has to be a random UUID, xxxxxxxx-xxxx-4xxx-[89ab]xxx-xxxxxxxxxxxx of 0-9a-f"
    )]
    BootId,
}

impl Renewal {
    /// Looks at every field. Both sides do: the host before it sends, the agent before it changes
    /// anything.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn check(&self) -> Result<(), RenewalError> {
        let entropy = self.entropy.0.len();
        if !ENTROPY.contains(&entropy) {
            return Err(RenewalError::Entropy(entropy));
        }
        if self.realtime_ns == 0 {
            return Err(RenewalError::Realtime);
        }
        let hostname = self.hostname.as_bytes();
        if hostname.is_empty() || hostname.len() > HOSTNAME || hostname.contains(&0) {
            return Err(RenewalError::Hostname);
        }
        if self.machine_id.len() != 32 || !is_id(self.machine_id.bytes()) {
            return Err(RenewalError::MachineId);
        }
        if !is_uuid(&self.boot_id) {
            return Err(RenewalError::BootId);
        }
        Ok(())
    }
}

fn is_id(mut digits: impl Iterator<Item = u8> + Clone) -> bool {
    digits.clone().any(|digit| digit != b'0')
        && digits.all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// Version 4, variant 2 (RFC 9562 section 5.4): the kernel makes no other, and takes no other for one.
fn is_uuid(text: &str) -> bool {
    let bytes = text.as_bytes();
    let version = bytes.get(14) == Some(&b'4');
    let variant = matches!(bytes.get(19), Some(b'8' | b'9' | b'a' | b'b'));
    let dashes = DASHES.iter().all(|&at| bytes.get(at) == Some(&b'-'));
    let rest = bytes.iter().enumerate();
    let rest = rest.filter(|(at, _)| !DASHES.contains(at));
    bytes.len() == 36 && version && variant && dashes && is_id(rest.map(|(_, &digit)| digit))
}

/// Random bytes that end up in no log: what prints a request prints their number only.
#[derive(Clone, PartialEq, Eq)]
pub struct Entropy(pub Vec<u8>);

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.len())
    }
}

impl Serialize for Entropy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * self.0.len());
        for byte in &self.0 {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(digit.into(), 16));
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Entropy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(digit).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                let pairs = digits.chunks_exact(2);
                let byte = |pair: &[u8]| pair.iter().fold(0, |byte, digit| byte << 4 | digit);
                Ok(Entropy(pairs.map(byte).collect()))
            }
            _ => Err(de::Error::custom(
                "entropy: has to be pairs of hexadecimal digits",
            )),
        }
    }
}

fn digit(character: char) -> Option<u8> {
    character.to_digit(16)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Reply, Request, frame};
    use proptest::prelude::*;

    fn renewal() -> Renewal {
        Renewal {
            entropy: Entropy(vec![7; 32]),
            realtime_ns: 1,
            hostname: "box".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            boot_id: "01234567-89ab-4def-8123-456789abcdef".into(),
        }
    }

    proptest! {
        #[test]
        fn any_renewal_survives_the_wire(
            entropy in proptest::collection::vec(any::<u8>(), 0..300),
            realtime_ns in any::<u64>(),
            texts in proptest::collection::vec(any::<String>(), 3),
        ) {
            let renewal = Renewal {
                entropy: Entropy(entropy),
                realtime_ns,
                hostname: texts[0].clone(),
                machine_id: texts[1].clone(),
                boot_id: texts[2].clone(),
            };
            let request = Request::Renew(renewal);
            let json = serde_json::to_vec(&request).unwrap();
            prop_assert_eq!(frame::parse_message::<Request>(&json).unwrap(), request);
        }
    }

    #[test]
    fn the_messages_look_as_documented() {
        let text = |request: &Request| serde_json::to_string(request).unwrap();
        assert_eq!(text(&Request::Prepare {}), r#"{"prepare":{}}"#);
        let renew = text(&Request::Renew(renewal()));
        assert!(
            renew.starts_with(r#"{"renew":{"entropy":"07070707"#),
            "{renew}"
        );
        let prepared: Reply = frame::parse_message(br#"{"prepared":{}}"#).unwrap();
        assert_eq!(prepared, Reply::Prepared {});
        let renewed: Reply = frame::parse_message(br#"{"renewed":{"took_us":7}}"#).unwrap();
        assert_eq!(renewed, Reply::Renewed { took_us: 7 });
    }

    #[test]
    fn entropy_is_hexadecimal_and_never_printed() {
        for text in [r#""0""#, r#""0g""#, r#""é""#, "7", r#""+1""#] {
            assert!(serde_json::from_str::<Entropy>(text).is_err(), "{text}");
        }
        let entropy: Entropy = serde_json::from_str(r#""00fFa5""#).unwrap();
        assert_eq!(entropy.0, [0, 255, 0xa5]);
        let printed = format!("{:?}", Request::Renew(renewal()));
        assert!(printed.contains("Entropy(32 bytes)"), "{printed}");
        assert!(!printed.contains("[7"), "{printed}");
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(renewal().check(), Ok(()));
        let wrong = |change: &dyn Fn(&mut Renewal), field: &str| {
            let mut renewal = renewal();
            change(&mut renewal);
            let error = renewal.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        };
        for count in [0, 31, 257] {
            wrong(&|r| r.entropy = Entropy(vec![1; count]), "entropy");
        }
        wrong(&|r| r.realtime_ns = 0, "realtime_ns");
        for name in ["", "a\0b", &"x".repeat(65)] {
            wrong(&|r| r.hostname = name.into(), "hostname");
        }
        let upper = renewal().machine_id.to_uppercase();
        for id in [
            "",
            "0",
            &"0".repeat(32),
            &upper,
            &"1".repeat(33),
            &"é".repeat(16),
        ] {
            wrong(&|r| r.machine_id = id.into(), "machine_id");
        }
        let zero = "00000000-0000-0000-0000-000000000000";
        let moved = "0123456-789ab-4def-8123-456789abcdef";
        let timed = "01234567-89ab-1def-8123-456789abcdef";
        let foreign = "01234567-89ab-4def-0123-456789abcdef";
        for id in [
            "",
            zero,
            moved,
            timed,
            foreign,
            &"1".repeat(36),
            &renewal().machine_id,
        ] {
            wrong(&|r| r.boot_id = id.into(), "boot_id");
        }
    }
}
