//! Compiled code is read or refused, whatever it is, and its one form is that of itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tierce_layer::canonical_bytecode;

fuzz_target!(|input: &[u8]| {
    if let Ok(canonical) = canonical_bytecode(input) {
        assert_eq!(canonical_bytecode(&canonical), Ok(canonical.clone()));
    }
});
