import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { createImages } from '../../../bridge/images/images.ts';
import type { CallToolResult } from '../../../bridge/mcp/sdk.ts';
import type { ToolContext } from '../../../bridge/mcp/tool.ts';
import { batchGenerate } from '../../../bridge/mcp/tools/batch-generate.ts';
import { generateImage } from '../../../bridge/mcp/tools/generate-image.ts';
import { getImage } from '../../../bridge/mcp/tools/get-image.ts';
import { getJob } from '../../../bridge/mcp/tools/get-job.ts';
import { findRoots } from '../../../bridge/output/roots.ts';
import { Laptop, opened } from '../fleet/fleet-fixture.ts';
import { ScriptedAgent } from '../fleet/scripted-agent.ts';

/** Answers of the four tools that tell of saved files. */
async function answers(resultLinks: boolean): Promise<CallToolResult[]> {
  await using agent = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([agent]));
  const { directory: home, output: outputDir } = laptop;
  const context: Partial<ToolContext> = {
    signal: new AbortController().signal,
    cancelReason: () => undefined,
    progress: () => undefined,
    client: { name: 'test', version: '1' },
    syncWaitMs: Infinity,
    settings: { outputDir, defaultModel: undefined, defaultEditModel: undefined, preview: 'inline', resultLinks },
    roots: () => findRoots({ home, cwd: home, configured: [home], outputDir, offered: [] }),
    fleet: async () => fleet,
    images: async () => createImages({ stateDir: home }),
  };
  const ours = context as ToolContext; // these tools look at nothing else
  const one = await generateImage.call({ prompt: 'a fox' }, ours);
  const many = await batchGenerate.call({ prompts: ['a bear', 'a cat'] }, ours);
  const [{ text } = { text: '' }] = one.content as { text: string }[]; // the first block is text
  const { job_id: id } = JSON.parse(text.slice(text.indexOf('\n'))) as { job_id: string };
  const all = [one, many, await getJob.call({ id }, ours), await getImage.call({ id }, ours)];
  const links = all.flatMap(({ content }) => content.flatMap((block) => (block.type === 'resource_link' ? block : [])));
  for (const { uri, size } of links) expect((await stat(fileURLToPath(uri))).size).toBe(size);
  return all;
}

test('on request an answer ends with a link to each saved file', async () => {
  const link = expect.objectContaining({
    type: 'resource_link',
    mimeType: 'image/png',
    name: expect.stringMatching(/\.png$/) as string,
  }) as unknown;
  const [one, many, again, shown] = await answers(true);
  expect(one?.content.at(-1)).toEqual(link);
  expect(again?.content.at(-1)).toEqual(link);
  expect(shown?.content.at(-1)).toEqual(link);
  expect(many?.content.slice(-2)).toEqual([link, link]);
});

test('without a request there is none: some clients drop an answer for it', async () => {
  for (const { content } of await answers(false))
    expect(content.map(({ type }) => type)).not.toContain('resource_link');
});
