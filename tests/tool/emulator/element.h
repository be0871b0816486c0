// In place of csrc/cuda/element.h: the types come from emulator.h.
#pragma once
