import { endToEnd, memory } from './image-chain.ts';
import { writePictures } from './image-fixture.ts';
import { imageHop } from './image-hop.ts';
import type { BenchPart } from './row.ts';

/** H1 to H4: what it costs to move a picture. */
export const IMAGES: BenchPart = {
  ids: ['H1', 'H2', 'H3', 'H4'],
  title: 'moving images',
  run: async (stage) => {
    const pictures = await writePictures(stage.directory);
    return [
      ...(await imageHop(stage, pictures)),
      ...(await endToEnd(stage, pictures)),
      ...(await memory(stage, pictures)),
    ];
  },
};
