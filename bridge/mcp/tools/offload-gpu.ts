import { giveBack, GivingBack } from '../giving-back.ts';
import { MoveAnswer } from '../moves.ts';
import { defineTool, ENDS } from '../tool.ts';

export const offloadGpu = defineTool({
  name: 'offload_gpu',
  title: 'Offload a model to host RAM',
  description:
    "Move a model's weights to host RAM: its VRAM is free and it comes back fast. A running image ends first.",
  annotations: ENDS,
  input: GivingBack,
  output: MoveAnswer,
  run: (args, context) => giveBack('offload', { args, context }),
});
