use super::*;

fn find(registers: &[Register], name: &str) -> Vec<u64> {
    let named = registers.iter().filter(|register| register.name == name);
    named.map(|register| register.attribute).collect()
}

#[test]
fn no_register_is_there_twice() {
    for version in [fdt::Gic::V2, fdt::Gic::V3] {
        let Registers { shared, private } = Registers::of(version);
        let all: Vec<_> = shared.iter().chain(&private).collect();
        let mut places: Vec<_> =
            all.iter().map(|register| (register.group as u32, register.attribute)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all.len());
    }
}

#[test]
fn banks_cover_the_shared_interrupts_and_no_others() {
    let v3 = Registers::of(fdt::Gic::V3);
    assert_eq!(find(&v3.shared, "GICD_ISENABLER"), [0x104, 0x108, 0x10c]);
    let routers = find(&v3.shared, "GICD_IROUTER");
    assert_eq!((routers[0], routers.len()), (0x6100, 96));
    assert_eq!(find(&v3.shared, "GICD_IPRIORITYR").len(), 24);
    assert_eq!(find(&v3.shared, "line levels"), [32, 64, 96]);
    let v2 = Registers::of(fdt::Gic::V2);
    assert_eq!(find(&v2.shared, "GICD_ITARGETSR")[0], 0x820);
    assert_eq!(find(&v2.private, "GICD_IPRIORITYR").len(), 8);
}

#[test]
fn the_controller_is_on_before_anything_becomes_pending() {
    for version in [fdt::Gic::V2, fdt::Gic::V3] {
        let shared = Registers::of(version).shared;
        let place = |name| shared.iter().position(|register| register.name == name).unwrap();
        assert_eq!(place("GICD_IIDR"), 0);
        assert!(place("GICD_CTLR") < place("GICD_ISENABLER"));
        assert!(place("GICD_ISENABLER") < place("GICD_ISPENDR"));
    }
}

#[test]
fn a_state_with_another_number_of_registers_or_cpus_is_refused() {
    let registers = Registers::of(fdt::Gic::V3);
    let state = GicState {
        shared: vec![0; registers.shared.len()],
        private: vec![vec![0; registers.private.len()]; 2],
    };
    state.check(&registers, 2).unwrap();
    let refusal = |state: &GicState| state.check(&registers, 2).unwrap_err().to_string();
    let mut short = state.clone();
    short.private[1].pop();
    assert!(refusal(&short).contains("registers of a CPU"), "{}", refusal(&short));
    short.private.pop();
    assert!(refusal(&short).contains("has 1 CPUs, this machine 2"), "{}", refusal(&short));
    short.shared.push(0);
    assert!(refusal(&short).contains("shared registers"), "{}", refusal(&short));
}
