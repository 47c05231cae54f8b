import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { formatInvite, parseInvite } from '../../shared/invite.ts';

const FP = `sha256:${'A'.repeat(43)}`;

test('what is written is read again', () => {
  const invites = [
    { addresses: ['10.0.0.5:7801'], fingerprint: FP, code: 'K7QM-2XRD', name: 'gpubox' },
    { addresses: ['gpubox.lan:7801', '10.0.0.5:7801', '[fd00::5]:7801'], fingerprint: FP, code: 'K7QM-2XRD' },
    { addresses: ['100.64.0.5:7801'], fingerprint: undefined, code: 'K7QM-2XRD' },
  ];
  for (const invite of invites) expect(parseInvite(formatInvite(invite))).toEqual(invite);
});

test('quotes and blanks around it are no part of it', () => {
  const line = formatInvite({ addresses: ['a:1'], fingerprint: FP, code: 'K7QM-2XRD' });
  expect(parseInvite(` '${line}'\n`)).toEqual(parseInvite(line));
});

describe('a line that is no invite says why, and never the code', () => {
  test.each([
    ['', 'it does not begin with gantry://'],
    ['https://10.0.0.5:7801?fp=x&code=SECRET99', 'it does not begin with gantry://'],
    [`gantry://10.0.0.5?fp=${FP}&code=SECRET99`, 'its address is none'],
    [`gantry://10.0.0.5:99999?fp=${FP}&code=SECRET99`, 'its address is none'],
    [`gantry://user@10.0.0.5:1?fp=${FP}&code=SECRET99`, 'its address is none'],
    [`gantry://a:1/path?fp=${FP}&code=SECRET99`, 'its address is none'],
    [`gantry://a:1?or=evil/x:1&fp=${FP}&code=SECRET99`, 'its address is none'],
    [`gantry://a:1?fp=${FP}`, 'A shell cuts it at the & unless it is in quotes'],
    ['gantry://a:1?code=SECRET99', 'it has no fingerprint'],
    ['gantry://a:1?fp=sha256:abc&code=SECRET99', 'its fingerprint is not whole'],
  ])('%s', (line, why) => {
    let said = '';
    try {
      parseInvite(line);
    } catch (error) {
      said = String(error);
    }
    expect(said).toContain(why);
    expect(said).not.toContain('SECRET99');
  });

  test('whatever it is, it is refused in words or read whole', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          const { addresses, code } = parseInvite(`gantry://${text}`);
          expect(addresses.every((address) => /^[\w.[\]:-]+:\d+$/.test(address))).toBe(true);
          expect(code).toMatch(/^[A-Za-z0-9-]+$/);
        } catch (error) {
          expect(error).toMatchObject({ code: 'INVALID_ARGUMENT' });
        }
      }),
    );
  });
});
