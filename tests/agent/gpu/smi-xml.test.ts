import { describe, expect, test } from 'vitest';
import { parseDeviceList } from '../../../agent/gpu/smi-rows.ts';
import { hasNamelessInstances, migInstances, parseSmiXml, xmlApps } from '../../../agent/gpu/smi-xml.ts';
import { golden } from './golden.ts';

const listed = parseDeviceList(golden('list-mig.txt'));
const [big, small] = listed.flatMap(({ mig }) => mig?.uuid ?? []);

function read(text: string) {
  const log = parseSmiXml(text);
  if (log === undefined) throw new Error('not read');
  return log;
}

describe('the inventory', () => {
  test('has the instances of a MIG GPU with the UUIDs of the list', () => {
    const log = read(golden('mig.xml'));
    expect(hasNamelessInstances(log)).toBe(true);
    const gpuUuid = 'GPU-0c5b7a1d-2222-4333-8444-555566667777';
    expect(migInstances(log, listed)).toEqual([
      { uuid: big, gpuUuid, device: 0, profile: '3g.20gb', totalMiB: 19_968, usedMiB: 9_021, freeMiB: 10_947 },
      { uuid: small, gpuUuid, device: 1, profile: '1g.5gb', totalMiB: 4_864, usedMiB: 12, freeMiB: 4_852 },
    ]);
    expect(migInstances(log, [])).toEqual([]); // without a UUID nothing can run there
  });

  test('has the UUIDs itself where a driver writes them', () => {
    const log = read(golden('mig.xml').replaceAll('<index>', '<uuid>MIG-own</uuid><index>'));
    expect(hasNamelessInstances(log)).toBe(false);
    expect(migInstances(log, [])).toMatchObject([{ uuid: 'MIG-own' }, { uuid: 'MIG-own' }]);
  });

  test('has each process on the instance it runs on', () => {
    expect(xmlApps(read(golden('mig.xml')), listed)).toEqual([
      { pid: 4242, gpuUuid: big, usedMiB: 8_998, name: 'python3' },
      { pid: 4311, gpuUuid: 'GPU-1b2c3d4e-5f60-4711-8899-aabbccddeeff', usedMiB: 1_490, name: 'a <b> & c' },
    ]);
  });

  test('of one GPU is a list of one, without instances and without processes', () => {
    const log = read(golden('one-gpu.xml'));
    expect(log.nvidia_smi_log.gpu).toMatchObject([{ mig_devices: [], processes: [] }]);
  });

  test('is not read where an instance lacks what it is known by: none would look like a free GPU', () => {
    expect(parseSmiXml(golden('mig.xml').replace('<gpu_instance_id>2</gpu_instance_id>', ''))).toBeUndefined();
  });

  test('is not read from a part of it, from garbage, or from nothing', () => {
    const text = golden('mig.xml');
    for (let length = 0; length < text.length - 1; length += 7)
      expect(parseSmiXml(text.slice(0, length))).toBeUndefined();
    expect(parseSmiXml(text.replace('</processes>', '</process>'))).toBeUndefined();
    for (const garbage of ['', '\u0000\ufffd<<<>', '<a/>', golden('no-driver.txt')]) {
      expect(parseSmiXml(garbage)).toBeUndefined();
    }
  });
});
