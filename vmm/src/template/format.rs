//! The file `state`: a header of fixed layout, then a body. Pure: bytes in, bytes out.
//!
//! `docs/template-format.md` describes it for readers of other programs. Magic and epoch stay where they
//! are in every epoch; everything after them may change with it. Whoever changes the header, a state
//! struct, or the meaning of a field raises [`EPOCH`] and makes the golden file anew.

use thiserror::Error;
use twox_hash::XxHash3_64;

use super::host::Host;
use super::state::State;

/// The first bytes of every template.
pub const MAGIC: [u8; 8] = *b"RUNDLET\x1a";
/// The version of the format.
pub const EPOCH: u32 = 1;
/// Bytes of the header.
pub const HEADER: usize = 128;
/// The longest body that is read: a hundred times what 16 vCPUs need.
pub const MAX_BODY: u64 = 32 << 20;

/// What a pile of bytes is not.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FormatError {
    /// Something else.
    #[error("state: it does not begin as a template does")]
    Magic,
    /// From another time.
    #[error("state: its format has epoch {found}, this program knows epoch {EPOCH}")]
    Epoch { found: u32 },
    /// Cut off, or longer than it says.
    #[error("state: it has {found} bytes instead of {expected}")]
    Length { found: u64, expected: u64 },
    /// Changed after it was written.
    #[error("state: the checksum of its {part} is wrong")]
    Checksum { part: &'static str },
    /// Whole, and yet not understood.
    #[error("state: its body makes no sense: {0}")]
    Body(String),
}

/// The length and checksum of a file of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Length of the file.
    pub len: u64,
    /// Bytes of pages that are not all zero.
    pub data: u64,
    /// Checksum over them and their places, see `pages`.
    pub sum: u64,
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the template runs on.
    pub host: Host,
    /// The file `memory`.
    pub memory: Pages,
    /// The file `window`.
    pub window: Pages,
}

/// Where each field of the header is.
mod at {
    pub(super) const EPOCH: usize = 8;
    pub(super) const LENGTH: usize = 12;
    pub(super) const BODY_LEN: usize = 16;
    pub(super) const BODY_SUM: usize = 24;
    pub(super) const MEMORY: usize = 32;
    pub(super) const WINDOW: usize = 56;
    pub(super) const BUILD: usize = 80;
    pub(super) const FEATURES: usize = 88;
    pub(super) const SIGNATURE: usize = 96;
    pub(super) const VENDOR: usize = 100;
    pub(super) const RESERVED: usize = 112;
    pub(super) const SUM: usize = 120;
}

const _: () = assert!(at::WINDOW == at::MEMORY + 24 && at::BUILD == at::WINDOW + 24);
const _: () = assert!(at::RESERVED == at::VENDOR + 12 && at::SUM + 8 == HEADER);

/// A checksum of bytes that are all there.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Makes the file.
pub fn encode(header: &Header, state: &State) -> Result<Vec<u8>, FormatError> {
    let Header {
        host,
        memory,
        window,
    } = header;
    let Host {
        build,
        vendor,
        signature,
        features,
    } = host;
    let mut file = vec![0; HEADER];
    file = postcard::to_extend(state, file).map_err(|error| body_error(&error))?;
    let body = file.get(HEADER..).unwrap_or_default();
    let (body_len, body_sum) = (body.len() as u64, sum(body));
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC);
    put(at::EPOCH, &EPOCH.to_le_bytes());
    put(at::LENGTH, &128_u32.to_le_bytes());
    put(at::BODY_LEN, &body_len.to_le_bytes());
    put(at::BODY_SUM, &body_sum.to_le_bytes());
    for (at, Pages { len, data, sum }) in [(at::MEMORY, memory), (at::WINDOW, window)] {
        put(at, &len.to_le_bytes());
        put(at + 8, &data.to_le_bytes());
        put(at + 16, &sum.to_le_bytes());
    }
    put(at::BUILD, &build.to_le_bytes());
    put(at::FEATURES, &features.to_le_bytes());
    put(at::SIGNATURE, &signature.to_le_bytes());
    put(at::VENDOR, vendor);
    let header_sum = sum(&file[..at::SUM]);
    file[at::SUM..HEADER].copy_from_slice(&header_sum.to_le_bytes());
    Ok(file)
}

/// The header, and the body as bytes of which nothing is known but that they are as they were written.
pub fn parse_header(file: &[u8]) -> Result<(Header, &[u8]), FormatError> {
    let found = file.len() as u64;
    let expected = HEADER as u64;
    let too_short = FormatError::Length { found, expected };
    if !file.starts_with(&MAGIC[..MAGIC.len().min(file.len())]) {
        return Err(FormatError::Magic);
    }
    let Some((header, body)) = file.split_first_chunk::<HEADER>() else {
        return Err(too_short);
    };
    let epoch = u32_at(header, at::EPOCH);
    if epoch != EPOCH {
        return Err(FormatError::Epoch { found: epoch });
    }
    if sum(&header[..at::SUM]) != u64_at(header, at::SUM) {
        return Err(FormatError::Checksum { part: "header" });
    }
    let body_len = u64_at(header, at::BODY_LEN);
    if body.len() as u64 != body_len {
        let expected = body_len.saturating_add(expected);
        return Err(FormatError::Length { found, expected });
    }
    if sum(body) != u64_at(header, at::BODY_SUM) {
        return Err(FormatError::Checksum { part: "body" });
    }
    let pages = |at: usize| Pages {
        len: u64_at(header, at),
        data: u64_at(header, at + 8),
        sum: u64_at(header, at + 16),
    };
    let header = Header {
        host: Host {
            build: u64_at(header, at::BUILD),
            vendor: bytes_at(header, at::VENDOR),
            signature: u32_at(header, at::SIGNATURE),
            features: u64_at(header, at::FEATURES),
        },
        memory: pages(at::MEMORY),
        window: pages(at::WINDOW),
    };
    Ok((header, body))
}

/// The body. Only of interest once the header is known to fit.
pub fn parse_body(body: &[u8], header: &Header) -> Result<State, FormatError> {
    let (state, rest) = postcard::take_from_bytes(body).map_err(|error| body_error(&error))?;
    if !rest.is_empty() {
        return Err(FormatError::Body("it goes on after its end".to_owned()));
    }
    let state: State = state;
    state.check(header).map_err(FormatError::Body)?;
    Ok(state)
}

/// The checksum of the header: what else belongs to this template bears it. Zero for a file without a header.
#[must_use]
pub fn header_sum(file: &[u8]) -> u64 {
    file.first_chunk::<HEADER>()
        .map_or(0, |header| u64_at(header, at::SUM))
}

/// Reads the whole file.
pub fn parse(file: &[u8]) -> Result<(Header, State), FormatError> {
    let (header, body) = parse_header(file)?;
    let state = parse_body(body, &header)?;
    Ok((header, state))
}

fn body_error(error: &postcard::Error) -> FormatError {
    FormatError::Body(error.to_string())
}

fn bytes_at<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    let bytes = header
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.expect("the header's fields lie within it")
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(header, at))
}

fn u64_at(header: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(header, at))
}

#[cfg(test)]
pub(super) mod tests;
