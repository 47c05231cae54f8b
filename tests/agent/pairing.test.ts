import { expect, test } from 'vitest';
import { Pairing } from '../../agent/pairing.ts';

type Added = { name: string; role: 'viewer' | 'operator' };

function pairing(names: string[] = []) {
  const clock = { ms: 1_000 };
  const added: Added[] = [];
  const tokens = {
    add: (token: Added) => {
      added.push(token);
      return Promise.resolve(`gantry_of ${token.name}`);
    },
    list: () =>
      Promise.resolve(
        [...names, ...added.map(({ name }) => name)].map((name) => ({ name })) as never, // of a token only the name is asked
      ),
  };
  return { pairing: new Pairing({ tokens, now: () => clock.ms }), clock, added };
}

async function refusal(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'accepted',
    (error: unknown) => `${String((error as { code?: string }).code)} ${String(error)}`, // an AppError has a code
  );
}

test('a code gives one token of its role, in small letters too, and never a second one', async () => {
  const { pairing: open, added } = pairing();
  const { code, expiresInMs } = open.invite('viewer');
  expect(code).toMatch(/^[A-Z2-9]{4}-[A-Z2-9]{4}$/);
  expect(expiresInMs).toBe(600_000);
  expect(await open.redeem({ code: code.toLowerCase(), name: 'laptop' })).toMatchObject({ role: 'viewer' });
  expect(added).toEqual([{ name: 'laptop', role: 'viewer' }]);
  expect(await refusal(open.redeem({ code, name: 'again' }))).toContain('AUTH_FAILED');
});

test('two at the same moment: one of them', async () => {
  const { pairing: open, added } = pairing();
  const { code } = open.invite('operator');
  const both = await Promise.allSettled([open.redeem({ code, name: 'a' }), open.redeem({ code, name: 'b' })]);
  expect(both.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
  expect(added).toHaveLength(1);
});

test('of more than twenty open invites the oldest is closed', async () => {
  const { pairing: open } = pairing();
  const [first, second] = Array.from({ length: 21 }, () => open.invite('operator').code);
  expect(await refusal(open.redeem({ code: first ?? '', name: 'a' }))).toContain('AUTH_FAILED');
  expect(await refusal(open.redeem({ code: second ?? '', name: 'b' }))).toBe('accepted');
});

test('unknown, used, expired and dead codes are refused in the same words', async () => {
  const { pairing: open, clock } = pairing();
  const words = new Set<string>();
  const { code: used } = open.invite('operator');
  await open.redeem({ code: used, name: 'a' });
  words.add(await refusal(open.redeem({ code: used, name: 'a' })));
  words.add(await refusal(open.redeem({ code: 'AAAA-AAAA', name: 'a' })));
  words.add(await refusal(open.redeem({ code: '', name: 'a' })));
  const { code: old } = open.invite('operator');
  clock.ms += 600_000;
  words.add(await refusal(open.redeem({ code: old, name: 'a' })));
  expect([...words]).toHaveLength(1);
  expect([...words][0]).toContain('AUTH_FAILED');
});

test('after ten minutes less a moment it still works', async () => {
  const { pairing: open, clock } = pairing();
  const { code } = open.invite('operator');
  clock.ms += 599_999;
  expect(await open.redeem({ code, name: 'a' })).toMatchObject({ role: 'operator' });
});

test('the fifth wrong code ends every open invite, and a new one has five tries again', async () => {
  const { pairing: open } = pairing();
  const { code } = open.invite('operator');
  for (let tries = 1; tries <= 4; tries += 1) await refusal(open.redeem({ code: 'AAAA-AAAA', name: 'a' }));
  const { code: late } = open.invite('operator');
  await refusal(open.redeem({ code: 'AAAA-AAAA', name: 'a' }));
  expect(await refusal(open.redeem({ code, name: 'a' }))).toContain('AUTH_FAILED');
  expect(await refusal(open.redeem({ code: late, name: 'a' }))).toContain('AUTH_FAILED');
  const { code: next } = open.invite('operator');
  for (let tries = 1; tries <= 4; tries += 1) await refusal(open.redeem({ code: 'AAAA-AAAA', name: 'a' }));
  expect(await open.redeem({ code: next, name: 'a' })).toMatchObject({ role: 'operator' });
});

test('what a laptop calls itself is a label: made harmless, and numbered where it is taken', async () => {
  const { pairing: open, added } = pairing(['me']);
  for (const name of ['me', 'me', '\u001b[31m<script>', '  ', 'x'.repeat(100)]) {
    await open.redeem({ code: open.invite('operator').code, name });
  }
  expect(added.map(({ name }) => name)).toEqual(['me-2', 'me-3', '--31m-script-', 'laptop', 'x'.repeat(80)]);
});
