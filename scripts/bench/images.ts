import { endToEnd, memory } from './image-chain.ts';
import { writePictures } from './image-fixture.ts';
import { imageHop } from './image-hop.ts';
import type { BenchPart } from './row.ts';

/** H1 to H4: what it costs to move a picture. */
export const IMAGES: readonly BenchPart[] = [
  {
    ids: ['H1', 'H3'],
    title: 'the way of the bytes of a picture',
    run: async (stage) => await imageHop(stage, await writePictures(stage.directory)),
  },
  {
    ids: ['H2'],
    title: 'a picture from the question to the file',
    run: async (stage) => await endToEnd(stage, await writePictures(stage.directory)),
  },
  {
    ids: ['H4'],
    title: 'memory of the agent that moves pictures',
    run: async (stage) => await memory(stage, await writePictures(stage.directory)),
  },
];
