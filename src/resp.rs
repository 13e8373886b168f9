//! RESP, the protocol's frames: encode commands, parse commands and replies; knows no command.
//!
//! Invariant: a peer-given length never causes an allocation before the bytes are there.

/// Appends the head of a command of `args` arguments.
pub fn array(out: &mut Vec<u8>, args: usize) {
    head(out, b'*', args as u64);
}

/// Appends one argument.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a whole command.
pub fn command(out: &mut Vec<u8>, args: &[&[u8]]) {
    array(out, args.len());
    for arg in args {
        bulk(out, arg);
    }
}

/// Appends one argument: a decimal number.
pub fn bulk_int(out: &mut Vec<u8>, n: i64) {
    let mut digits = [0u8; 20];
    bulk(out, decimal(n, &mut digits));
}

fn head(out: &mut Vec<u8>, sigil: u8, n: u64) {
    let mut digits = [0u8; 20];
    out.push(sigil);
    out.extend_from_slice(decimal(i64::try_from(n).unwrap_or(i64::MAX), &mut digits));
    out.extend_from_slice(b"\r\n");
}

/// The decimal text of `n`, written at the end of `digits`.
pub fn decimal(n: i64, digits: &mut [u8; 20]) -> &[u8] {
    let mut left = n.unsigned_abs();
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (left % 10) as u8;
        used += 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if n < 0 {
        used += 1;
        if let Some(sign) = digits.get_mut(20 - used) {
            *sign = b'-';
        }
    }
    digits.get(20 - used..).unwrap_or_default()
}
