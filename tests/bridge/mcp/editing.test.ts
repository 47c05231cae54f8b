import { copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { inputOf } from '../../../bridge/mcp/editing.ts';
import type { ToolContext } from '../../../bridge/mcp/tool.ts';

const ID = '8e0d0d33-3d3c-4f9f-a2ad-6d2c8ffb44f2';

test('a picture by its id is read from where pictures may be read, and from nowhere else', async () => {
  const home = await mkdtemp(join(tmpdir(), 'gantry-editing-'));
  try {
    const inside = join(home, 'in');
    await mkdir(inside);
    await mkdir(join(home, 'out'));
    const roots = { home, cwd: home, allowed: [inside] };
    for (const [directory, isAllowed] of [
      ['in', true],
      ['out', false],
    ] as const) {
      const path = join(home, directory, 'fox.png');
      await copyFile('tests/agent/model/input.png', path);
      const images = { find: async () => ({ id: ID, path, sha256: '' }) };
      const context = { images: async () => images } as unknown as ToolContext; // it looks for the image, and no more
      for (const name of [ID, `image://${ID}/view`]) {
        const read = inputOf(name, { roots, context });
        if (isAllowed) expect(await read).toMatchObject({ path, imageId: ID });
        else await expect(read).rejects.toMatchObject({ code: 'PATH_DENIED' });
      }
    }
  } finally {
    await rm(home, { recursive: true, force: true });
  }
});
