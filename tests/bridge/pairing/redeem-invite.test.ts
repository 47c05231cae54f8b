import { expect, test } from 'vitest';
import { redeemInvite } from '../../../bridge/pairing/redeem-invite.ts';

test.each(['203.0.113.7:7801', '[2001:db8::7]:7801'])(
  'S1: to %s, an address of the internet, no code goes unencrypted: nothing is connected to',
  async (address) => {
    const invite = { addresses: [address], fingerprint: undefined, code: 'K7QM-2XRD' };
    const { signal } = new AbortController();
    await expect(redeemInvite(invite, { name: 'laptop', signal })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('is a public address, and this agent does not encrypt') as string,
    });
  },
);
