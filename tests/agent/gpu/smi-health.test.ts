import { describe, expect, test } from 'vitest';
import { healthOf, isUnknownField, namedLosses } from '../../../agent/gpu/smi-health.ts';
import { golden } from './golden.ts';

describe('an exit without readings', () => {
  const ROWS: [file: string, exitCode: number | undefined, health: string, says: RegExp][] = [
    ['no-devices.txt', 6, 'absent', /No devices/],
    ['no-devices.txt', 0, 'absent', /No devices/],
    ['no-driver.txt', 9, 'unreadable', /couldn't communicate.*driver is not loaded/],
    ['irq.txt', 10, 'unreadable', /interrupt/],
    ['no-nvml.txt', 12, 'unreadable', /libnvidia-ml/],
    ['function-missing.txt', 13, 'unreadable', /too old/],
    ['lost.txt', 15, 'lost', /GPU is lost.*Reboot/],
    ['lost.txt', 255, 'lost', /GPU is lost/],
    ['mismatch.txt', 18, 'unreadable', /version mismatch.*restart the host/],
    ['container-lost-device.txt', 255, 'unreadable', /Unknown Error/],
    ['blocked.txt', 255, 'unreadable', /blocked by the operating system/],
    ['unknown-field.txt', 2, 'unreadable', /not a valid field/],
  ];
  test.each(ROWS)('%s with %s means %s', (file, exitCode, health, says) => {
    const found = healthOf({ exitCode, stdout: golden(file), stderr: '' });
    expect(found.health).toBe(health);
    expect(found.reason).toMatch(says);
  });

  test.each([2, 3, 4, 8, 9, 10, 12, 13, 18, 255, 0, undefined])(
    'with %s and without a word has a reason',
    (exitCode) => {
      const found = healthOf({ exitCode, stdout: '', stderr: '' });
      expect(found.health).toBe('unreadable');
      expect(found.reason.length).toBeGreaterThan(10);
    },
  );

  test('of a program that is not there means absent', () => {
    const output = { exitCode: undefined, stdout: '', stderr: 'Error: spawn nvidia-smi ENOENT' };
    expect(healthOf(output).health).toBe('absent');
    expect(healthOf(output).reason).toMatch(/nvidia-smi was not found.*gpu\.nvidia_smi/);
  });

  test('a lost GPU asks for a reboot even where nvidia-smi does not', () => {
    expect(healthOf({ exitCode: 15, stdout: '', stderr: '' }).reason).toMatch(/Reboot the host/);
  });

  test('garbage is not repeated to people', () => {
    const { reason } = healthOf({ exitCode: 1, stdout: '\u0000\u001b[31mtext\u0007\n', stderr: '' });
    expect(reason).toBe('[31mtext');
  });

  test('for an unknown field asks for the next rung', () => {
    expect(isUnknownField({ exitCode: 2, stdout: golden('unknown-field.txt'), stderr: '' })).toBe(true);
    expect(isUnknownField({ exitCode: 9, stdout: golden('no-driver.txt'), stderr: '' })).toBe(false);
  });
});

describe('the lost GPU of a message', () => {
  test.each([
    ['GPU 0000:02:00.0: GPU is lost.  Reboot the system', '0000:02:00.0', undefined],
    ['GPU0000:5f:00.0: Unknown Error', '0000:5F:00.0', undefined],
    ['GPU3: 0000:5F:00.0: Unknown Error', '0000:5F:00.0', 3],
    ['gpu 00000000:02:00.0: GPU is lost.', '0000:02:00.0', undefined],
    ['GPU2: Unknown Error', undefined, 2],
    ['GPU0', undefined, 0],
  ])('%s', (words, busId, index) => {
    const said = `Unable to determine the device handle for ${words}`;
    expect(namedLosses(`something\n${said}\nmore`)).toEqual([{ busId, index, said }]);
  });

  test('is nobody where none is named', () => {
    expect(namedLosses('GPU is lost.\nUnable to determine the device handle for anything')).toEqual([]);
  });

  test('is each of several', () => {
    expect(namedLosses(golden('lost.txt').repeat(2))).toHaveLength(2);
  });
});
