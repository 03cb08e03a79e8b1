use super::*;
use crate::cell::Switched;
use crate::optimizations::known;

fn told(options: &[(&str, &str)]) -> Result<Told> {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    known(&Switched { technique: Technique::DistributedSimulation, options }).map(|(_, options)| Told::of(&options))
}

#[test]
fn options_are_understood() {
    let plain = told(&[]).expect("defaults");
    let expected = Told { devices: 2, tensor: false, bandwidth: Some(1.25e9), latency: 1e-4, micro_batches: 2 };
    assert_eq!(plain, expected);
    assert!(plain.is_real());
    let other = [("devices", "4"), ("bandwidth", "unlimited"), ("latency", "none"), ("parallel", "tensor")];
    let other = told(&other).expect("options");
    let expected = Told { devices: 4, tensor: true, bandwidth: None, latency: 0.0, micro_batches: 4 };
    assert_eq!(other, expected);
    assert!(!other.is_real());
    for (name, value) in [
        ("devices", "0"),
        ("bandwidth", "-1"),
        ("latency", "fast"),
        ("parallel", "expert"),
        ("link", "wire"),
        ("speed", "1"),
    ] {
        assert!(told(&[(name, value)]).is_err(), "{name} {value}");
    }
}

#[test]
fn the_arm_of_two_devices_is_two_processes() {
    let stages = told(&[("micro_batches", "3")]).expect("options").stages(Via::Shaper);
    assert_eq!((stages.count, stages.micro_batches, stages.latency), (2, 3, 1e-4));
}
