//! Framing, following and capability repair, per command and per byte: `cargo bench --bench components`.

mod cases;

use cases::{CASES, Case, Unit};
use divan::counter::BytesCount;

fn main() {
    divan::main();
}

#[divan::bench(args = CASES)]
fn component(bencher: divan::Bencher<'_, '_>, case: &Case) {
    let turn = (case.start)();
    match case.unit {
        Unit::Command => bencher.bench_local(turn),
        Unit::Bytes(n) => bencher.counter(BytesCount::new(n)).bench_local(turn),
    }
}
