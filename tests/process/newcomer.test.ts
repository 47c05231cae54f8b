import { expect, test } from 'vitest';
import { visit } from '../../scripts/lib/newcomer.ts';
import { ThrowAwayMachine } from '../../scripts/lib/throw-away-machine.ts';

const cannot = await ThrowAwayMachine.whyNot();
if (cannot !== undefined) process.stdout.write(`newcomer: skipped, a throw-away machine: ${cannot}\n`);

test.skipIf(cannot !== undefined)(
  'from nothing to the first image over TLS, as docs/install.md says it, and no file edited by hand',
  { timeout: 300_000 },
  async () => {
    const { steps, image, tookMs } = await visit();
    process.stdout.write(`newcomer: ${(tookMs / 1_000).toFixed(1)} s from nothing to the first image\n`);
    expect(image).toMatch(/^\/home\/newcomer\/Pictures\/gantry\/img_.*\.png$/);
    const printed = (typed: string): string => steps.find((step) => step.typed.startsWith(typed))?.printed ?? '';
    expect(printed('gantry add')).toMatch(/wss:\/\/10\.77\.0\.1:7801 {2}connected/);
    expect(printed('gantry doctor')).toMatch(/ok +pin: gpubox: certificate pinned/);
    expect(printed('gantry-agent doctor')).toMatch(/ok +reach: 0\.0\.0\.0:7801: the network, with TLS/);
  },
);
